//! Credentials and changes of forwarded requests: which credential decides the identity and is
//! forwarded, and when the changes of the request invalidate entries.
//!
//! If the response depends on the access level, the credential that decided is forwarded alone. A
//! change invalidates when its request is received, if the caller is known, and again when the
//! response is complete, unless the API refused it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HeaderName,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http1::FieldLines;
use tokio::time::timeout;

use super::redact_for::{RedactFor, RedactRule, is_json};
use super::request_context::{
    Forwarded, ForwardedValidation, PendingChanges, Proxy, RequestContext,
};
use crate::api::{
    AccessLevel, ApiError, BodyError, Change, Credential, CredentialError, CredentialPlace, Query,
    Refusal, Token, Validation, find_all_tokens, find_cookie_tokens, read_body_token,
    read_validation, strip_cookie,
};
use crate::cache::Scope;
use crate::clock;
use crate::config::ForwardRole;
use crate::reply::CacheStatus;
use crate::server::http::client_failure::ClientFailure;
use crate::server::http::client_session::ClientSession;
use crate::server::state::RequestState;

pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Maximum length of a JSON body that is read before it is forwarded.
const MAX_READ_AHEAD: usize = 64 << 10;

/// Maximum time without a byte of such a body.
const READ_AHEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum time for the first byte of a body without a media type. After that the body is forwarded
/// unread, and the response is redacted as for a body that the gateway cannot read.
const SNIFF_TIMEOUT: Duration = Duration::from_millis(250);

/// Time for which the API may execute a write after its client disconnected or the API became
/// silent: the silence that a forwarded exchange permits.
const UNSETTLED: Duration = Duration::from_secs(75);

/// Interval at which the other gateways of a cluster repeat the invalidation for such a write.
const UNSETTLED_REPEAT: Duration = Duration::from_secs(1);

/// Media types that are never JSON; a body of any other type is JSON if it begins with `{`.
const NEVER_JSON: [&str; 5] =
    ["multipart/", "image/", "audio/", "video/", "application/octet-stream"];

/// Beginning of the media type of a form.
const FORM: &[u8] = b"application/x-www-form";

/// Reason why a request is not forwarded.
pub enum NotForwarded {
    /// The gateway refuses it.
    Refused(ApiError),
    /// The client failed while its body was read or its token was validated.
    Client(ClientFailure),
}

impl From<ApiError> for NotForwarded {
    fn from(error: ApiError) -> Self {
        NotForwarded::Refused(error)
    }
}

impl From<ClientFailure> for NotForwarded {
    fn from(failure: ClientFailure) -> Self {
        NotForwarded::Client(failure)
    }
}

/// Token in a request body.
enum BodyToken {
    None,
    One(Token),
    /// The gateway cannot read the body; the API may find a token in it.
    Unknown,
}

/// The credentials of a request as the API receives them.
pub struct ForwardedCredentials<'a> {
    forwarded: Forwarded,
    /// Name of the token cookie.
    cookie: Option<&'a str>,
}

impl RequestContext {
    pub fn forwarded_credentials(&self) -> ForwardedCredentials<'_> {
        ForwardedCredentials { forwarded: self.forwarded, cookie: self.state.cookie.as_deref() }
    }
}

impl ForwardedCredentials<'_> {
    /// Whether every credential is forwarded.
    pub const fn is_all(&self) -> bool {
        matches!(self.forwarded, Forwarded::All)
    }

    /// Writes the credential that is forwarded alone, if it is in a field other than a cookie.
    pub fn push_single(&self, lines: &mut FieldLines, fields: &HeaderMap) {
        let name = match self.forwarded {
            Forwarded::Only(Some(CredentialPlace::Authorization)) => AUTHORIZATION,
            Forwarded::Only(Some(CredentialPlace::ApiKey)) => X_API_KEY,
            Forwarded::Only(_) | Forwarded::All => return,
        };
        if let Some(value) = fields.get(&name) {
            lines.push(&name, value.as_bytes());
        }
    }

    /// Returns the cookies that are forwarded, by field.
    pub fn cookies<'f>(&self, fields: &'f HeaderMap) -> Vec<Cow<'f, [u8]>> {
        let values = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
        match (self.forwarded, self.cookie) {
            (Forwarded::Only(kept), Some(name)) => {
                let mut keep = kept == Some(CredentialPlace::Cookie);
                values
                    .filter_map(|value| strip_cookie(value, name, &mut keep))
                    .map(Cow::Owned)
                    .collect()
            }
            _ => values.map(Cow::Borrowed).collect(),
        }
    }

    /// Returns the target without the tokens that are not forwarded.
    pub fn target<'t>(&self, target: &'t str) -> Cow<'t, str> {
        let Forwarded::Only(kept) = self.forwarded else { return Cow::Borrowed(target) };
        let Some((path, query)) = target.split_once('?') else { return Cow::Borrowed(target) };
        let rest =
            Query::unvalidated(Some(query)).without_tokens(kept == Some(CredentialPlace::Query));
        if rest == query {
            Cow::Borrowed(target)
        } else if rest.is_empty() {
            Cow::Borrowed(path)
        } else {
            Cow::Owned(format!("{path}?{rest}"))
        }
    }
}

/// Returns the credential that decides, of those in head and body.
///
/// # Errors
///
/// They differ, or the one in the head is malformed.
fn decide(
    found: Result<Credential, CredentialError>,
    body: &BodyToken,
) -> Result<Option<Credential>, ApiError> {
    match (found, body) {
        (Ok(found), BodyToken::One(token)) if *token != found.token => {
            Err(ApiError::BadRequest(Refusal::AmbiguousCredential))
        }
        (Ok(found), _) => Ok(Some(found)),
        (Err(CredentialError::Missing), BodyToken::One(token)) => {
            Ok(Some(Credential { token: token.clone(), place: CredentialPlace::Body }))
        }
        (Err(CredentialError::Missing), _) => Ok(None),
        (Err(error), _) => Err(error.into()),
    }
}

/// Class of a request body by its media type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Media {
    Json,
    NeverJson,
    Unstated,
}

fn media_of(headers: &HeaderMap) -> Media {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Media::Unstated };
    let lower = value.as_bytes().trim_ascii().to_ascii_lowercase();
    match is_json(&lower) {
        true => Media::Json,
        false if NEVER_JSON.iter().any(|prefix| lower.starts_with(prefix.as_bytes())) => {
            Media::NeverJson
        }
        false => Media::Unstated,
    }
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether a body begins as a JSON object. `None`: it is blank so far.
fn begins_as_object(body: &[u8]) -> Option<bool> {
    let first = body
        .iter()
        .find(|byte| !byte.is_ascii_whitespace() && !matches!(byte, 0xef | 0xbb | 0xbf))?;
    Some(*first == b'{')
}

/// Whether the API refused to execute the request, by its status.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 404 | 405)
}

impl Proxy {
    /// Decides the redaction of a forwarded request, the credential that is forwarded, and the
    /// changes.
    ///
    /// # Errors
    ///
    /// The request is refused, or its client failed.
    pub async fn prepare_forward(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        changes: Vec<Change>,
        rule: Option<RedactRule>,
    ) -> Result<Option<RedactFor>, NotForwarded> {
        let state = context.state.clone();
        let address = context.address;
        let for_level = rule.as_ref().is_some_and(|rule| {
            rule.role == ForwardRole::Caller && !rule.policy.reveals_to(AccessLevel::LOWEST)
        });
        context.depends_on_level = rule.is_some();
        let own = changes.iter().any(Change::is_callers_own);
        // For other writes the token in a short body is needed only if their client disconnects.
        let unattended = !changes.is_empty()
            && content_length(&session.request().fields)
                .is_some_and(|length| length <= MAX_READ_AHEAD)
            && head_tokens(session, &state).is_ok_and(|tokens| tokens.is_empty());
        let body = match for_level || own || unattended {
            true => self.read_body_token(session, context, own).await?,
            false => BodyToken::None,
        };
        let redact_for = match rule {
            None => None,
            Some(rule) if rule.role == ForwardRole::Answer => RedactFor::new(rule, None),
            Some(rule) => {
                let level = Box::pin(self.level(session, context, &body)).await?;
                context.record.level = Some(level);
                RedactFor::new(rule, Some(level))
            }
        };
        if !changes.is_empty() {
            Box::pin(self.invalidate_before(session, context, changes, body)).await?;
        }
        if session.request().path() == "/auth/validateToken" {
            let tokens = head_tokens(session, &state).unwrap_or_default();
            if !tokens.is_empty() && !state.gateway.is_any_known(&tokens, address) {
                let identities = state.gateway.identities();
                context.validation.permit =
                    Some(session.unless_closed(identities.invalid_permit(address)).await??);
            }
        }
        Ok(redact_for)
    }

    /// Returns the access level for the redaction of a forwarded response: the lowest without a
    /// valid token. If the API cannot be asked about a token, the request fails.
    async fn level(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        body: &BodyToken,
    ) -> Result<AccessLevel, NotForwarded> {
        let gateway = context.state.gateway.clone();
        let address = context.address;
        let request = session.request();
        let query = Query::unvalidated(request.query());
        let decided = decide(gateway.credential(&request.fields, &query), body)?;
        context.forwarded = Forwarded::Only(decided.as_ref().map(|credential| credential.place));
        let Some(Credential { token, .. }) = decided else { return Ok(AccessLevel::LOWEST) };
        let caller = gateway.caller_of(&token);
        let identities = gateway.identities();
        let identifying = identities.identify(caller, &token, address, None, clock::now());
        match session.unless_closed(identifying).await? {
            // The API may find another token in a body that the gateway cannot read.
            Ok(_) if matches!(body, BodyToken::Unknown) => Ok(AccessLevel::LOWEST),
            Ok(caller) => Ok(caller.identity.level),
            Err(failure) if failure.error == ApiError::InvalidToken => {
                context.is_judged_invalid = true;
                Ok(AccessLevel::LOWEST)
            }
            Err(failure) => {
                context.record.cause = failure.cause;
                context.record.api = failure.exchange;
                Err(failure.error.into())
            }
        }
    }

    /// Invalidates for the changes of a request if its caller is known, and stores the changes for
    /// the end of the response.
    async fn invalidate_before(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        changes: Vec<Change>,
        body: BodyToken,
    ) -> Result<(), NotForwarded> {
        let state = context.state.clone();
        let address = context.address;
        let own = changes.iter().any(Change::is_callers_own);
        let mut tokens = match head_tokens(session, &state) {
            Err(_) if own => return Err(ApiError::Unattributed.into()),
            tokens => tokens.unwrap_or_default(),
        };
        match body {
            BodyToken::Unknown if own => return Err(ApiError::Unattributed.into()),
            BodyToken::One(token) => tokens.push(token),
            BodyToken::Unknown | BodyToken::None => {}
        }
        if own {
            // The API may use another cookie name than the gateway's configuration.
            let known =
                |token: &Token| state.gateway.is_any_known(std::slice::from_ref(token), address);
            tokens.extend(find_cookie_tokens(&session.request().fields).filter(known));
        }
        let scopes = state.gateway.scopes(changes, &tokens, address);
        context.changes.scopes = session.unless_closed(scopes).await??;
        if state.gateway.is_any_known(&tokens, address) {
            invalidate(&state, &context.changes.scopes, "request");
        }
        context.changes.tokens = tokens;
        Ok(())
    }

    /// Reads the token in a JSON body of at most 64 KiB, which is forwarded afterwards. `form`:
    /// also the token in a form.
    async fn read_body_token(
        &self,
        session: &mut ClientSession,
        context: &mut RequestContext,
        form: bool,
    ) -> Result<BodyToken, NotForwarded> {
        let headers = &session.request().fields;
        let (media, length) = (media_of(headers), content_length(headers));
        let mut codings = headers.get_all(CONTENT_ENCODING).iter();
        let is_coded = codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
        let is_form = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.as_bytes().trim_ascii().get(..FORM.len()))
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(FORM));
        if !context.has_body || media == Media::NeverJson || !session.has_body() {
            return Ok(BodyToken::None);
        }
        if media == Media::Json
            && (is_coded || length.is_some_and(|length| length > MAX_READ_AHEAD))
        {
            return Ok(BodyToken::Unknown);
        }
        // Such a client waits for the API's decision, which must not be made in its place for a
        // guess.
        if media == Media::Unstated && !form && session.request().fields.contains_key(EXPECT) {
            return Ok(BodyToken::Unknown);
        }
        let wanted = |body: &[u8]| {
            media == Media::Json || (form && is_form) || begins_as_object(body).unwrap_or(true)
        };
        let patience =
            if media == Media::Json || form { READ_AHEAD_TIMEOUT } else { SNIFF_TIMEOUT };
        let Some(is_whole) = read_ahead(session, context, wanted, patience).await? else {
            return Ok(BodyToken::Unknown);
        };
        let body = &context.read_ahead;
        if !wanted(body) {
            return Ok(BodyToken::None);
        }
        if !is_whole {
            return Ok(BodyToken::Unknown);
        }
        if form && is_form && begins_as_object(body) != Some(true) {
            let text = std::str::from_utf8(body).map_err(|_| ApiError::Unattributed)?;
            let query =
                Query::parse(Some(text.trim_ascii())).map_err(|_| ApiError::Unattributed)?;
            return match query
                .token_aliases()
                .map(|token| Token::parse(&token))
                .collect::<Vec<_>>()
                .as_slice()
            {
                [] => Ok(BodyToken::None),
                [Some(token)] => Ok(BodyToken::One(token.clone())),
                _ => Ok(BodyToken::Unknown),
            };
        }
        match read_body_token(body) {
            Ok(token) => Ok(token.map_or(BodyToken::None, BodyToken::One)),
            Err(BodyError::NotJson) if media == Media::Json => Ok(BodyToken::Unknown),
            Err(BodyError::NotJson) => Ok(BodyToken::None),
            Err(BodyError::Credential(_)) if form => Ok(BodyToken::Unknown),
            Err(BodyError::Credential(CredentialError::Ambiguous)) => {
                Err(ApiError::BadRequest(Refusal::AmbiguousCredential).into())
            }
            Err(BodyError::Credential(_)) => {
                Err(ApiError::BadRequest(Refusal::MalformedCredential).into())
            }
        }
    }

    /// Handles the head of the response to a forwarded request.
    pub fn on_upstream_head(
        &self,
        session: &ClientSession,
        context: &mut RequestContext,
        status: StatusCode,
    ) {
        context.record.cache = Some(CacheStatus::Bypass);
        context.changes.status = Some(status);
        let state = context.state.clone();
        if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED)
            && let Some(permit) = context.validation.permit.take()
        {
            permit.keep();
            context.is_judged_invalid = true;
        }
        if status != StatusCode::UNAUTHORIZED {
            return;
        }
        let request = session.request();
        let query = Query::unvalidated(request.query());
        let decided = state
            .gateway
            .credential(&request.fields, &query)
            .ok()
            .map(|credential| credential.token);
        let Some(token) = decided.or_else(|| context.changes.tokens.first().cloned()) else {
            return;
        };
        let address = context.address;
        let (caller, now) = (state.gateway.caller_of(&token), clock::now());
        let identities = state.gateway.identities();
        if identities.is_known(caller, address, now) {
            state.gateway.invalidate(&Scope::Caller(caller), "unauthorized");
        } else if !context.is_judged_invalid && !identities.is_known_invalid(caller, address, now) {
            identities.count_invalid(address);
        }
    }

    /// Handles a piece of the response body of a forwarded request.
    pub fn on_upstream_body(&self, context: &mut RequestContext, piece: &[u8]) {
        let ForwardedValidation { permit: Some(_), body } = &mut context.validation else { return };
        if body.len() + piece.len() <= MAX_READ_AHEAD {
            body.extend_from_slice(piece);
        }
    }

    /// Handles the end of a response before its last piece is forwarded, so that a request that
    /// begins after it is not served an older entry.
    pub fn on_upstream_end(&self, context: &mut RequestContext) {
        if let Some(permit) = context.validation.permit.take()
            && read_validation(&context.validation.body) == Some(Validation::Invalid)
        {
            permit.keep();
        }
        if std::mem::replace(&mut context.changes.is_settled, true) {
            return;
        }
        if !context.changes.status.is_some_and(is_refusal) {
            invalidate(&context.state, &context.changes.scopes, "answer");
        }
    }

    /// Handles a missing or incomplete response. `is_open`: the API may execute the request later.
    pub fn on_upstream_failure(&self, context: &mut RequestContext, is_open: bool) {
        let address = context.address;
        let PendingChanges { scopes, tokens, status, is_settled } = &mut context.changes;
        if std::mem::replace(is_settled, true)
            || scopes.is_empty()
            || status.is_some_and(is_refusal)
        {
            return;
        }
        let (state, scopes, tokens) =
            (context.state.clone(), std::mem::take(scopes), std::mem::take(tokens));
        if !is_open {
            return invalidate(&state, &scopes, "failed");
        }
        if state.gateway.is_any_known(&tokens, address) {
            return unsettle(&state, scopes);
        }
        // A client without a valid token cannot have changed anything.
        tokio::spawn(async move {
            for token in tokens {
                let caller = state.gateway.caller_of(&token);
                let identified = state
                    .gateway
                    .identities()
                    .identify(caller, &token, address, None, clock::now())
                    .await;
                let error = identified.err().map(|failure| failure.error);
                if !matches!(error, Some(ApiError::InvalidToken | ApiError::TooManyRequests)) {
                    return unsettle(&state, scopes);
                }
            }
        });
    }
}

/// Returns every token in the head of a request.
fn head_tokens(
    session: &ClientSession,
    state: &RequestState,
) -> Result<Vec<Token>, CredentialError> {
    let request = session.request();
    let query = Query::unvalidated(request.query());
    find_all_tokens(&request.fields, &query, state.cookie.as_deref())
}

fn invalidate(state: &RequestState, scopes: &[Scope], trigger: &'static str) {
    for scope in scopes {
        state.gateway.invalidate(scope, trigger);
    }
}

/// Blocks storing for these scopes until the write to them must have ended.
fn unsettle(state: &Arc<RequestState>, scopes: Vec<Scope>) {
    let until = clock::now() + UNSETTLED;
    invalidate(state, &scopes, "unsettled");
    let scopes = state.gateway.unsettle(&scopes, until);
    if state.process.invalidation_stream.get().is_none() || scopes.is_empty() {
        return;
    }
    // The other gateways do not know about the pending write and store what they fetch.
    let state = state.clone();
    tokio::spawn(async move {
        while clock::now() < until {
            tokio::time::sleep(UNSETTLED_REPEAT).await;
            invalidate(&state, &scopes, "unsettled");
        }
    });
}

/// Reads a body into `context.read_ahead` while it is `wanted` and short enough. Returns whether it
/// is complete; `None` if it did not begin in time.
async fn read_ahead(
    session: &mut ClientSession,
    context: &mut RequestContext,
    wanted: impl Fn(&[u8]) -> bool,
    patience: Duration,
) -> Result<Option<bool>, ClientFailure> {
    if session.request().fields.contains_key(EXPECT) {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::CONTINUE;
        session.write_interim(head).await?;
        session.request_mut().fields.remove(&EXPECT);
    }
    let mut body = BytesMut::new();
    let is_whole = loop {
        if body.len() > MAX_READ_AHEAD || !wanted(&body) {
            break false;
        }
        let reading = session.read_body();
        // The gateway waits longer for a body that has begun as JSON.
        let wait = if begins_as_object(&body).is_some() { READ_AHEAD_TIMEOUT } else { patience };
        let Ok(read) = timeout(wait, reading).await else {
            context.read_ahead = body.freeze();
            let is_sniffing = wait < READ_AHEAD_TIMEOUT;
            return if is_sniffing { Ok(None) } else { Err(ClientFailure::TimedOut) };
        };
        match read? {
            Some(piece) => body.extend_from_slice(&piece),
            None => break true,
        }
    };
    context.read_ahead = body.freeze();
    Ok(Some(is_whole))
}

/// Takes the part of the body that was read before the exchange with the API.
pub fn take_read_ahead(context: &mut RequestContext) -> Bytes {
    std::mem::take(&mut context.read_ahead)
}
