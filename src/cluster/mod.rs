//! A cluster: gateways that share invalidations, and optionally responses and identities, through
//! one Redis. No request depends on it: everything in it is encrypted, and a gateway that gets no
//! reply in time works on alone.

pub mod aead;
mod change_index;
mod connection;
mod environment;
mod invalidation_stream;
mod keys;
mod leader_lease;
mod reply_limit;
mod server_time;
mod shared_tier;
mod stream_id;

pub use change_index::{ChangeIndex, Position, Subject};
pub use connection::{Connection, Connector, RedisError};
pub use environment::Environment;
pub use invalidation_stream::{InvalidationStream, OnPolicyChange, StreamDeps};
pub use keys::Keys;
pub use leader_lease::{LeaderLease, Leadership};
pub use server_time::ServerTime;
pub use shared_tier::{
    IdentityTtl, KeyDeriver, Lookup, ResponseLookup, Store, StoreError, Tier, TierDeps, WriteLease,
    evaluate_identity, redis_tier,
};
pub use stream_id::StreamId;
