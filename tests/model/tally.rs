//! What was answered, counted by kind: a model that never sees one kind says nothing about it.

/// A kind of answer, or something about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Hit,
    /// By the tier, from what another gateway asked for.
    Shared,
    Revalidating,
    StaleIfError,
    Miss,
    Revalidated,
    Forced,
    Collapsed,
    Bypassed,
    NotModified,
    /// 403 or 404 of the API's own.
    Refused,
    InvalidToken,
    Failed,
    NotStored,
    /// Given to a caller whose identity is past its time, since the API could not be asked.
    OldIdentity,
    /// A change of what was asked for was answered while the request was under way.
    Overtaken,
    /// An answer stored before should serve the request.
    Due,
    /// It should, and it did.
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
