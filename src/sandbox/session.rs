//! Sessions by token: employee, expiry and bound address. The time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::data::Id;
use super::response::ErrorResponse;

/// Bounds the memory of sessions that no client ends; far more than a developer opens.
pub const MAX_SESSIONS: usize = 10_000;

#[derive(Clone, Copy)]
pub enum Expiry {
    Never,
    /// Expires `length` after the last protected request.
    Sliding {
        length: Duration,
        ends: SystemTime,
    },
}

impl Expiry {
    fn has_expired(self, now: SystemTime) -> bool {
        matches!(self, Expiry::Sliding { ends, .. } if ends <= now)
    }
}

pub struct Session {
    pub employee: Id,
    pub expiry: Expiry,
    /// The address of the login. `None` for demo and machine tokens, which are valid from any
    /// address.
    pub address: Option<IpAddr>,
    /// The reseller that the caller switched to with `/auth/organizationreseller`.
    pub reseller: Option<Id>,
}

/// All sessions by token. An expired one is kept until the bound is reached, so that its holder
/// receives `expired`.
#[derive(Default)]
pub struct Sessions(HashMap<String, Session>);

impl Sessions {
    /// Creates a session with a random token of 40 hexadecimal characters.
    ///
    /// Errors: 500 if there are `MAX_SESSIONS`, or the system provides no random bytes.
    pub fn create(&mut self, session: Session, now: SystemTime) -> Result<String, ErrorResponse> {
        if self.0.len() >= MAX_SESSIONS {
            self.0.retain(|_, session| !session.expiry.has_expired(now));
        }
        if self.0.len() >= MAX_SESSIONS {
            return Err(ErrorResponse::Internal("Too many sessions; restart the sandbox"));
        }
        let mut random = [0_u8; 20];
        getrandom::fill(&mut random).map_err(|_| {
            ErrorResponse::Internal("The system provided no random bytes for a token")
        })?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        self.insert(token.clone(), session);
        Ok(token)
    }

    /// Creates a session with a given token.
    pub fn insert(&mut self, token: String, session: Session) {
        self.0.insert(token, session);
    }

    /// Finds the session of a protected request and extends it.
    ///
    /// Errors: 401 `invalid_token` for an unknown token, 401 `expired` for an expired session.
    pub fn touch(&mut self, token: &str, now: SystemTime) -> Result<&mut Session, ErrorResponse> {
        let session = self.0.get_mut(token).ok_or(ErrorResponse::InvalidToken)?;
        if session.expiry.has_expired(now) {
            return Err(ErrorResponse::Expired);
        }
        if let Expiry::Sliding { length, ends } = &mut session.expiry {
            *ends = now + *length;
        }
        Ok(session)
    }

    /// Finds the session of a valid token without extending it.
    pub fn find_valid(&self, token: &str, now: SystemTime) -> Option<&Session> {
        self.0.get(token).filter(|session| !session.expiry.has_expired(now))
    }

    /// Finds the session of a token, expired or not.
    pub fn get_mut(&mut self, token: &str) -> Option<&mut Session> {
        self.0.get_mut(token)
    }

    /// Removes a token of this employee; returns whether it existed.
    pub fn remove(&mut self, employee: Id, token: &str) -> bool {
        let is_own = self.0.get(token).is_some_and(|session| session.employee == employee);
        is_own && self.0.remove(token).is_some()
    }

    pub fn remove_all_of(&mut self, employee: Id) {
        self.0.retain(|_, session| session.employee != employee);
    }
}
