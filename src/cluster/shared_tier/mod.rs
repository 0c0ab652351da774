//! The shared tier: responses and identities that gateways of a cluster share through Redis.

mod encoding;
mod identity;
mod redis_store;
mod response;
mod store;
mod tier;

pub use identity::{IdentityTtl, evaluate_identity};
pub use redis_store::redis_tier;
pub use response::ResponseLookup;
pub use store::{Store, StoreError};
pub use tier::{KeyDeriver, Lookup, Tier, TierDeps, WriteLease};
