//! What the stand-in answers instead of its usual: answers, gates, and the rules that say when they
//! apply.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::wire::Seen;

/// One answer of the stand-in, before it is put into bytes.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub framing: Framing,
}

/// How the end of a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length,
    Chunked,
    UntilClose,
    /// Adds no field: the given headers are complete, true or not.
    AsGiven,
}

impl Answer {
    pub fn new(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new(), framing: Framing::Length }
    }

    /// 200 with a JSON body.
    pub fn json(body: impl Into<Vec<u8>>) -> Answer {
        Answer::new(200).header("Content-Type", "application/json; charset=utf-8").body(body)
    }

    /// An error as the API shapes it.
    pub fn error(status: u16, code: &str) -> Answer {
        let body = format!(
            r#"{{"error":{{"message":"stand-in says {code}","code":"{code}","status":{status}}}}}"#
        );
        Answer { status, ..Answer::json(body) }
    }

    pub fn status(mut self, status: u16) -> Answer {
        self.status = status;
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes away a field that was set before.
    pub fn without(mut self, name: &str) -> Answer {
        self.headers.retain(|(field, _)| !field.eq_ignore_ascii_case(name));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Answer {
        self.body = body.into();
        self
    }

    pub fn framing(mut self, framing: Framing) -> Answer {
        self.framing = framing;
        self
    }
}

/// Something that waits until the test lets it go on.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub fn closed() -> Gate {
        Gate(Arc::new(watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn passed(&self) {
        let mut state = self.0.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = state.wait_for(|open| *open).await;
    }
}

type Maker = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;
type SlowMaker = Arc<dyn Fn(Seen) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// What the stand-in does with a request that a rule matches.
#[derive(Clone)]
pub(super) enum Act {
    /// What it would have answered without the rule.
    Usual,
    Answer(Answer),
    Made(Maker),
    MadeSlowly(SlowMaker),
    /// These bytes, whatever they are; `keep` leaves the connection open for further requests.
    Raw {
        bytes: Vec<u8>,
        keep: bool,
        /// What comes unasked once the gate is open.
        later: Option<(Gate, Vec<u8>)>,
    },
    /// These bytes, and then those again and again until the other side closes.
    Forever {
        head: Vec<u8>,
        piece: Vec<u8>,
    },
    /// Closes with no answer, having read the request.
    Close,
    /// Closes with no answer, having read the head only.
    CloseAtHead,
    /// 101, then every byte comes back.
    Upgrade,
}

/// Says for the paths under a prefix (and one method, if given) what is to be done. The newest rule
/// that matches wins.
#[derive(Clone)]
pub struct Rule {
    pub(super) prefix: String,
    pub(super) method: Option<String>,
    pub(super) times: Option<usize>,
    pub(super) act: Act,
    pub(super) gate: Option<Gate>,
    pub(super) body_gate: Option<Gate>,
    pub(super) cut_after: Option<usize>,
    pub(super) drip: bool,
}

impl Rule {
    pub fn on(prefix: &str) -> Rule {
        Rule {
            prefix: prefix.to_owned(),
            method: None,
            times: None,
            act: Act::Usual,
            gate: None,
            body_gate: None,
            cut_after: None,
            drip: false,
        }
    }

    /// For this method only.
    pub fn method(mut self, method: &str) -> Rule {
        self.method = Some(method.to_owned());
        self
    }

    /// For so many requests only; then the rule is gone.
    pub fn times(mut self, times: usize) -> Rule {
        self.times = Some(times);
        self
    }

    pub fn answer(mut self, answer: Answer) -> Rule {
        self.act = Act::Answer(answer);
        self
    }

    /// An answer made of the request.
    pub fn made(mut self, maker: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Rule {
        self.act = Act::Made(Arc::new(maker));
        self
    }

    /// An answer made of the request in as much time as it takes; other requests are answered
    /// meanwhile.
    pub fn made_slowly<F>(mut self, maker: impl Fn(Seen) -> F + Send + Sync + 'static) -> Rule
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        self.act = Act::MadeSlowly(Arc::new(move |seen| Box::pin(maker(seen))));
        self
    }

    /// These bytes verbatim, then the connection is closed.
    pub fn raw(mut self, bytes: impl Into<Vec<u8>>) -> Rule {
        self.act = Act::Raw { bytes: bytes.into(), keep: false, later: None };
        self
    }

    /// These bytes verbatim; the connection stays open.
    pub fn raw_kept_open(mut self, bytes: impl Into<Vec<u8>>) -> Rule {
        self.act = Act::Raw { bytes: bytes.into(), keep: true, later: None };
        self
    }

    /// These bytes verbatim, and those when the gate opens, without a request; the connection stays
    /// open.
    pub fn raw_and_unasked(
        mut self,
        bytes: impl Into<Vec<u8>>,
        gate: &Gate,
        unasked: impl Into<Vec<u8>>,
    ) -> Rule {
        self.act = Act::Raw {
            bytes: bytes.into(),
            keep: true,
            later: Some((gate.clone(), unasked.into())),
        };
        self
    }

    /// These bytes verbatim, and then those again and again until the other side closes.
    pub fn forever(mut self, head: impl Into<Vec<u8>>, piece: impl Into<Vec<u8>>) -> Rule {
        self.act = Act::Forever { head: head.into(), piece: piece.into() };
        self
    }

    pub fn close(mut self) -> Rule {
        self.act = Act::Close;
        self
    }

    pub fn close_at_head(mut self) -> Rule {
        self.act = Act::CloseAtHead;
        self
    }

    pub fn upgrade(mut self) -> Rule {
        self.act = Act::Upgrade;
        self
    }

    /// Nothing of the answer is sent before the gate opens.
    pub fn hold(mut self, gate: &Gate) -> Rule {
        self.gate = Some(gate.clone());
        self
    }

    /// The head and the first half of the body are sent at once, the rest when the gate opens.
    pub fn hold_body(mut self, gate: &Gate) -> Rule {
        self.body_gate = Some(gate.clone());
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_body_after(mut self, bytes: usize) -> Rule {
        self.cut_after = Some(bytes);
        self
    }

    /// Sends the answer byte by byte; an endless one piece by piece, and slowly.
    pub fn drip(mut self) -> Rule {
        self.drip = true;
        self
    }

    pub(super) fn matches(&self, seen: &Seen) -> bool {
        seen.path().starts_with(&self.prefix)
            && self.method.as_ref().is_none_or(|method| *method == seen.method)
    }
}
