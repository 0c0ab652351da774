//! Counts of responses by kind: a kind that never occurs is not tested.

/// A kind or property of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Hit,
    /// From the tier, fetched by another gateway.
    Shared,
    Revalidating,
    StaleIfError,
    Miss,
    Revalidated,
    Forced,
    Collapsed,
    Bypassed,
    NotModified,
    /// 403 or 404 of the API.
    Refused,
    InvalidToken,
    Failed,
    NotStored,
    /// For a caller with an expired identity, because the API could not be asked.
    OldIdentity,
    /// A change of the requested entry completed while the request was under way.
    Overtaken,
    /// A stored response should serve the request.
    Due,
    /// It should and did.
    Served,
}

impl Seen {
    pub const ALL: [Seen; 18] = [
        Seen::Hit,
        Seen::Shared,
        Seen::Revalidating,
        Seen::StaleIfError,
        Seen::Miss,
        Seen::Revalidated,
        Seen::Forced,
        Seen::Collapsed,
        Seen::Bypassed,
        Seen::NotModified,
        Seen::Refused,
        Seen::InvalidToken,
        Seen::Failed,
        Seen::NotStored,
        Seen::OldIdentity,
        Seen::Overtaken,
        Seen::Due,
        Seen::Served,
    ];
}

#[derive(Clone, Debug, Default)]
pub struct Tally([usize; Seen::ALL.len()]);

impl Tally {
    pub fn count(&mut self, seen: Seen) {
        self.0[seen as usize] += 1;
    }

    pub fn of(&self, seen: Seen) -> usize {
        self.0[seen as usize]
    }

    pub fn add(&mut self, other: &Tally) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}
