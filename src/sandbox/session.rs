//! Tokens: who holds one, until when, bound to which address. The clock is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::answer::Refusal;
use super::data::Id;

/// A bound for logins that nobody ends. Far more than a developer makes, far less than memory.
pub const MOST_SESSIONS: usize = 10_000;

#[derive(Clone, Copy)]
pub enum Life {
    Persistent,
    /// Lives for `length` after the last protected call.
    Sliding {
        length: Duration,
        ends: SystemTime,
    },
}

impl Life {
    fn is_over(self, now: SystemTime) -> bool {
        matches!(self, Life::Sliding { ends, .. } if ends <= now)
    }
}

pub struct Session {
    pub employee: Id,
    pub life: Life,
    /// The address of the login; `None` for tokens of the demo and of machines, which work from everywhere.
    pub address: Option<IpAddr>,
    /// The reseller that the caller switched to with `/auth/organizationreseller`.
    pub reseller: Option<Id>,
}

/// All sessions by token. One that is over stays until room is needed, so that its holder hears `expired`.
#[derive(Default)]
pub struct Sessions(HashMap<String, Session>);

impl Sessions {
    /// Opens a session with a new random token of 40 hexadecimal characters.
    ///
    /// Errors: 500 when `MOST_SESSIONS` are alive, or the system has no randomness to give.
    pub fn open(&mut self, session: Session, now: SystemTime) -> Result<String, Refusal> {
        if self.0.len() >= MOST_SESSIONS {
            self.0.retain(|_, session| !session.life.is_over(now));
        }
        if self.0.len() >= MOST_SESSIONS {
            return Err(Refusal::Internal("The sandbox holds as many sessions as it can; restart it"));
        }
        let mut random = [0_u8; 20];
        getrandom::fill(&mut random).map_err(|_| Refusal::Internal("No randomness for a token"))?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.open_as(token.clone(), session);
        Ok(token)
    }

    /// Opens a session with a token of the sandbox's own.
    pub fn open_as(&mut self, token: String, session: Session) {
        self.0.insert(token, session);
    }

    /// The session of a protected call: its end moves.
    ///
    /// Errors: 401 `invalid_token` for a token that nobody holds, 401 `expired` for one whose session is over.
    pub fn touch(&mut self, token: &str, now: SystemTime) -> Result<&mut Session, Refusal> {
        let session = self.0.get_mut(token).ok_or(Refusal::InvalidToken)?;
        if session.life.is_over(now) {
            return Err(Refusal::Expired);
        }
        if let Life::Sliding { length, ends } = &mut session.life {
            *ends = now + *length;
        }
        Ok(session)
    }

    /// The session of a token that is valid now. Nothing moves.
    pub fn look(&self, token: &str, now: SystemTime) -> Option<&Session> {
        self.0.get(token).filter(|session| !session.life.is_over(now))
    }

    /// The session of a token, over or not.
    pub fn held(&mut self, token: &str) -> Option<&mut Session> {
        self.0.get_mut(token)
    }

    /// Ends one token, if this employee holds it.
    pub fn end(&mut self, employee: Id, token: &str) -> bool {
        let held = self.0.get(token).is_some_and(|session| session.employee == employee);
        held && self.0.remove(token).is_some()
    }

    pub fn end_all_of(&mut self, employee: Id) {
        self.0.retain(|_, session| session.employee != employee);
    }
}
