//! Memory of large redacted responses: while they are read and redacted, and while they wait for
//! their clients. Both are bounded in bytes, and each caller and each address has a share, so that
//! slow readers do not keep other clients from large responses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::cache::CallerId;

/// Maximum length of a response that is redacted: ten times a list of 500 full customers.
pub const MAX_BODY: usize = 16 << 20;

/// Maximum number of bytes that are read and redacted at a time. Redaction briefly takes up to ten
/// times as much, but only half of the cores redact large documents at a time.
const MAX_READING: usize = 256 << 20;

/// Maximum number of bytes that wait for clients.
const MAX_SENDING: usize = 256 << 20;

/// Maximum number of large responses that are read and redacted at a time, of one caller and of one
/// address.
const MAX_LARGE_PER_CLIENT: usize = 2;

/// Maximum number of bytes that wait, of one caller and of one address: two of the largest
/// responses.
const MAX_SENDING_PER_CLIENT: usize = 2 * MAX_BODY;

/// Number of bytes of one semaphore permit.
const UNIT: usize = 4 << 10;

/// The owner of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    Caller(CallerId),
    Address(IpAddr),
}

/// The memory in use, in total and by client.
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
    /// Waits until a response of this length may be read. Waits for the clients' own shares first,
    /// so that a client that has used its share takes no part of the common memory while it waits.
    ///
    /// # Errors
    ///
    /// Never: the semaphores are not closed.
    pub async fn reserve(
        self: &Arc<Self>,
        clients: &[Client],
        bytes: usize,
    ) -> Result<Reservation, AcquireError> {
        let units = units(bytes);
        let shares: Vec<ShareHandle> = clients.iter().map(|client| self.share(*client)).collect();
        let (mut large, mut sending) = (Vec::new(), Vec::new());
        for held in &shares {
            large.push(held.share.large.clone().acquire_owned().await?);
            sending.push(held.share.sending.clone().acquire_many_owned(units).await?);
        }
        sending.push(self.sending.clone().acquire_many_owned(units).await?);
        let reading = self.reading.clone().acquire_many_owned(units).await?;
        Ok(Reservation { _large: large, reading, sending, shares })
    }

    fn share(self: &Arc<Self>, client: Client) -> ShareHandle {
        let share =
            self.shares.lock().entry(client).or_insert_with(|| Arc::new(Share::new())).clone();
        ShareHandle { client, share, budget: self.clone() }
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

/// A client's share while it is in use. Without a user it is removed.
struct ShareHandle {
    client: Client,
    share: Arc<Share>,
    budget: Arc<ResponseBudget>,
}

impl Drop for ShareHandle {
    fn drop(&mut self) {
        let mut shares = self.budget.shares.lock();
        // The references of the map and of this handle. Others are created and dropped under this
        // lock.
        if Arc::strong_count(&self.share) == 2 {
            shares.remove(&self.client);
        }
    }
}

/// Reserved memory of one response.
pub struct Reservation {
    _large: Vec<OwnedSemaphorePermit>,
    reading: OwnedSemaphorePermit,
    sending: Vec<OwnedSemaphorePermit>,
    shares: Vec<ShareHandle>,
}

impl Reservation {
    /// Releases the memory beyond the length of the response.
    pub fn shrink_to(&mut self, bytes: usize) {
        let units = units(bytes) as usize;
        for permit in self.sending.iter_mut().chain([&mut self.reading]) {
            drop(permit.split(permit.num_permits().saturating_sub(units)));
        }
    }

    /// Converts the reservation of a redacted response: from here on only waiting bytes count.
    pub fn into_send_reservation(self) -> SendReservation {
        let Reservation { sending, shares, .. } = self;
        SendReservation { _sending: sending, _shares: shares }
    }
}

/// Reserved memory of a response that waits for its client.
pub struct SendReservation {
    _sending: Vec<OwnedSemaphorePermit>,
    _shares: Vec<ShareHandle>,
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
    fn client_at_its_share_does_not_delay_another() {
        let budget = Arc::new(ResponseBudget::default());
        let reserve = |last| now(budget.reserve(&[address(last)], MAX_BODY));
        let (first, second) = (reserve(1).unwrap(), reserve(1).unwrap());
        assert!(reserve(1).is_none() && reserve(2).is_some());
        // A response that waits for a slow reader still counts in the share of its client.
        let sending = first.into_send_reservation();
        assert!(reserve(1).is_none());
        drop(sending);
        assert!(reserve(1).is_some());
        drop(second);
        assert!(budget.shares.lock().is_empty(), "forgotten without a user");
    }

    #[test]
    fn small_responses_of_slow_readers_fit_the_share() {
        let budget = Arc::new(ResponseBudget::default());
        let held: Vec<_> = (0..100)
            .map(|_| {
                now(budget.reserve(&[address(1)], 300_000))
                    .expect("room for 30 MB")
                    .into_send_reservation()
            })
            .collect();
        assert!(now(budget.reserve(&[address(1)], MAX_BODY)).is_none());
        assert!(now(budget.reserve(&[address(2)], MAX_BODY)).is_some());
        drop(held);
        let mut reserved = now(budget.reserve(&[address(1)], MAX_BODY)).unwrap();
        reserved.shrink_to(100);
        assert_eq!(budget.reading.available_permits(), MAX_READING / UNIT - 1);
    }
}
