//! Memory of large responses on redacted routes: those that are read and redacted, and what redaction gave while it
//! waits for its client. Both are bounded in bytes, and no caller and no address has more than its share, so that slow
//! readers do not keep others from large responses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::cache::CallerId;

/// The largest response that is redacted: a list of 500 full customers is about a tenth of it.
pub const MAX_BODY: usize = 16 << 20;

/// Bytes that are read and redacted at once. Redaction itself takes up to ten times as much for a moment, but only half
/// of the cores redact large documents at once.
const MAX_READING: usize = 256 << 20;

/// Bytes that wait for clients.
const MAX_SENDING: usize = 256 << 20;

/// Large responses of one caller, and of one address, that are read and redacted at once.
const MAX_LARGE_PER_CLIENT: usize = 2;

/// Bytes of one caller, and of one address, that wait for them: as much as two of the largest responses.
const MAX_SENDING_PER_CLIENT: usize = 2 * MAX_BODY;

/// What a permit counts, in bytes.
const UNIT: usize = 4 << 10;

/// Whose share a response is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Caller(CallerId),
    Address(IpAddr),
}

/// The bytes that are in use, and by whom.
pub struct ResponseBudget {
    reading: Arc<Semaphore>,
    sending: Arc<Semaphore>,
    shares: Mutex<HashMap<Client, Arc<Share>>>,
}

struct Share {
    large: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

impl Default for ResponseBudget {
    fn default() -> Self {
        ResponseBudget {
            reading: Arc::new(Semaphore::new(MAX_READING / UNIT)),
            sending: Arc::new(Semaphore::new(MAX_SENDING / UNIT)),
            shares: Mutex::default(),
        }
    }
}

impl ResponseBudget {
    /// Waits until a response of so many bytes may be read. First for the clients' own shares: whoever used theirs up
    /// waits without a part of what all share.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub async fn reserve(self: &Arc<Self>, clients: &[Client], bytes: usize) -> Result<Reserved, AcquireError> {
        let units = units(bytes);
        let shares: Vec<Held> = clients.iter().map(|client| self.share(*client)).collect();
        let (mut large, mut sending) = (Vec::new(), Vec::new());
        for held in &shares {
            large.push(held.share.large.clone().acquire_owned().await?);
            sending.push(held.share.sending.clone().acquire_many_owned(units).await?);
        }
        sending.push(self.sending.clone().acquire_many_owned(units).await?);
        let reading = self.reading.clone().acquire_many_owned(units).await?;
        Ok(Reserved { _large: large, reading, sending, shares })
    }

    fn share(self: &Arc<Self>, client: Client) -> Held {
        let share = self.shares.lock().entry(client).or_insert_with(|| Arc::new(Share::new())).clone();
        Held { client, share, budget: self.clone() }
    }
}

impl Share {
    fn new() -> Self {
        Share {
            large: Arc::new(Semaphore::new(MAX_LARGE_PER_CLIENT)),
            sending: Arc::new(Semaphore::new(MAX_SENDING_PER_CLIENT / UNIT)),
        }
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.min(MAX_BODY).div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// A client's share while something is counted in it; without a user it is forgotten.
struct Held {
    client: Client,
    share: Arc<Share>,
    budget: Arc<ResponseBudget>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut shares = self.budget.shares.lock();
        // The map's and this one. Others are made and dropped under the same lock.
        if Arc::strong_count(&self.share) == 2 {
            shares.remove(&self.client);
        }
    }
}

/// Room for one response.
pub struct Reserved {
    _large: Vec<OwnedSemaphorePermit>,
    reading: OwnedSemaphorePermit,
    sending: Vec<OwnedSemaphorePermit>,
    shares: Vec<Held>,
}

impl Reserved {
    /// Gives back what the response turned out not to need.
    pub fn shrink_to(&mut self, bytes: usize) {
        let units = units(bytes) as usize;
        for permit in self.sending.iter_mut().chain([&mut self.reading]) {
            drop(permit.split(permit.num_permits().saturating_sub(units)));
        }
    }

    /// The response is redacted: only what waits for the client counts from here on.
    pub fn into_sending(self) -> Sending {
        let Reserved { sending, shares, .. } = self;
        Sending { _sending: sending, _shares: shares }
    }
}

/// Room for what waits for one client.
pub struct Sending {
    _sending: Vec<OwnedSemaphorePermit>,
    _shares: Vec<Held>,
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn address(last: u8) -> Client {
        Client::Address([192, 0, 2, last].into())
    }

    fn now<T>(future: impl Future<Output = Result<T, AcquireError>>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result.unwrap()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_client_has_two_large_responses_and_others_have_theirs() {
        let budget = Arc::new(ResponseBudget::default());
        let reserve = |last| now(budget.reserve(&[address(last)], MAX_BODY));
        let (first, second) = (reserve(1).unwrap(), reserve(1).unwrap());
        assert!(reserve(1).is_none() && reserve(2).is_some());
        // What waits for a slow reader is no longer being read, and still counts as its own.
        let sending = first.into_sending();
        assert!(reserve(1).is_none());
        drop(sending);
        assert!(reserve(1).is_some());
        drop(second);
        assert!(budget.shares.lock().is_empty(), "forgotten without a user");
    }

    #[test]
    fn slow_readers_of_small_shares_do_not_wait_for_each_other() {
        let budget = Arc::new(ResponseBudget::default());
        let held: Vec<_> = (0..100)
            .map(|_| now(budget.reserve(&[address(1)], 300_000)).expect("room for 30 MB").into_sending())
            .collect();
        assert!(now(budget.reserve(&[address(1)], MAX_BODY)).is_none());
        assert!(now(budget.reserve(&[address(2)], MAX_BODY)).is_some());
        drop(held);
        let mut reserved = now(budget.reserve(&[address(1)], MAX_BODY)).unwrap();
        reserved.shrink_to(100);
        assert_eq!(budget.reading.available_permits(), MAX_READING / UNIT - 1);
    }
}
