//! Counts of responses by kind. A model in which a kind never occurs proves nothing about it.

/// A kind of response, or a circumstance of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    Hit,
    /// Served from the shared tier.
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
    /// Served for an expired identity, since the API failed.
    OldIdentity,
    /// A change of the subject was answered while the request was running.
    Overtaken,
    /// A stored entry should serve the request.
    Due,
    /// A stored entry should serve the request, and did.
    Served,
}

impl Case {
    pub const ALL: [Case; 18] = [
        Case::Hit,
        Case::Shared,
        Case::Revalidating,
        Case::StaleIfError,
        Case::Miss,
        Case::Revalidated,
        Case::Forced,
        Case::Collapsed,
        Case::Bypassed,
        Case::NotModified,
        Case::Refused,
        Case::InvalidToken,
        Case::Failed,
        Case::NotStored,
        Case::OldIdentity,
        Case::Overtaken,
        Case::Due,
        Case::Served,
    ];
}

/// How often each case occurred.
#[derive(Clone, Debug, Default)]
pub struct Coverage([usize; Case::ALL.len()]);

impl Coverage {
    pub fn count(&mut self, case: Case) {
        self.0[case as usize] += 1;
    }

    pub fn of(&self, case: Case) -> usize {
        self.0[case as usize]
    }

    pub fn add(&mut self, other: &Coverage) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }
}
