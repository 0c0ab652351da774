//! The TelecomX API as types: ids, access levels, credentials, error bodies, path spellings, and
//! the changes that requests make. Performs no input or output and knows no time.

mod access;
mod change_log;
mod changes;
mod credential;
mod error;
pub mod folding;
mod ids;
mod location;
mod media_type;
mod name_request;
mod path;
mod pattern_word;
mod readings;
mod validation;

pub use access::AccessLevel;
pub use change_log::{Entry, MAX_ENTRIES, RETENTION_DAYS, read_change_log};
pub use changes::{Change, changes};
pub use credential::{
    BodyError, Credential, CredentialError, CredentialPlace, Token, bearer, cookie_value,
    credentials_agree, decide_credential, find_all_tokens, find_cookie_tokens, find_credential,
    holds_credential, read_body_token, strip_cookie, with_token,
};
pub use error::{ApiError, Refusal, RetryAfter, error_body};
pub use ids::{CustomerId, EmployeeId, request_id_text};
pub use location::holds_credential_or_secret;
pub use media_type::{MediaType, MediaTypePattern, accepts_any, is_token};
pub use name_request::{NameRequestHead, NameRequestMethod, NameRequestRules};
pub use path::{MAX_PATH, NormalPath, PathError, PathPattern, Protected, Query, QueryError};
pub use validation::{Identity, Validation, read_validation};
