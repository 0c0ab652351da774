//! The tokens of the admin listener: one, or two during a rotation.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::file_watch;
use crate::config::Admin;
use crate::secret_file::SecretText;

/// Minimum length of a token beyond loopback: 16 characters of base64 are 96 bits.
const TOKEN_LENGTH_MIN: usize = 16;

/// The digests of the tokens in `admin.token_file`. They are read again when the file changes, so
/// that a token can be rotated without a gap: add the new one as a second line, give it to the
/// clients, remove the old line.
pub struct AdminTokens {
    admin: Admin,
    file: PathBuf,
    digests: ArcSwap<Vec<blake3::Hash>>,
}

impl AdminTokens {
    /// Reads the file; `None` if no token is configured.
    ///
    /// # Errors
    /// The file contains no usable token.
    pub fn load(admin: &Admin) -> Result<Option<Arc<Self>>, String> {
        let Some(file) = admin.token_file.clone() else { return Ok(None) };
        let tokens = AdminTokens { admin: admin.clone(), file, digests: ArcSwap::default() };
        tokens.store(tokens.read()?);
        Ok(Some(Arc::new(tokens)))
    }

    #[cfg(test)]
    pub fn for_test(token: &[u8]) -> Arc<Self> {
        let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let admin = Admin { listen, token_file: None };
        let digests = ArcSwap::from_pointee(vec![blake3::hash(token)]);
        Arc::new(AdminTokens { admin, file: PathBuf::new(), digests })
    }

    /// Reads the file without using its tokens.
    ///
    /// # Errors
    /// As [`AdminTokens::load`].
    pub fn read(&self) -> Result<Vec<blake3::Hash>, String> {
        let problem = |text: &dyn std::fmt::Display| {
            format!("admin.token_file: {}: {text}", self.file.display())
        };
        let text = SecretText::read(&self.file).map_err(|error| problem(&error))?;
        let tokens = text.tokens().map_err(|error| problem(&error))?;
        let is_loopback = self.admin.listen.ip().to_canonical().is_loopback();
        if !is_loopback && tokens.iter().any(|token| token.len() < TOKEN_LENGTH_MIN) {
            return Err(problem(&format_args!(
                "the token has fewer than {TOKEN_LENGTH_MIN} characters and admin.listen is not a loopback address; \
                 generate one with `openssl rand -hex 32`"
            )));
        }
        Ok(tokens.iter().map(|token| blake3::hash(token.as_bytes())).collect())
    }

    /// Uses these tokens from now on.
    pub fn store(&self, digests: Vec<blake3::Hash>) {
        self.digests.store(Arc::new(digests));
    }

    /// Whether this is one of the tokens. Digests are compared in constant time.
    pub fn accepts(&self, token: &[u8]) -> bool {
        let digest = blake3::hash(token);
        self.digests.load().contains(&digest)
    }

    /// Reads the file again whenever it changes. An unusable file keeps the tokens in use.
    pub fn watch(self: &Arc<Self>) {
        let tokens = self.clone();
        let file = self.file.clone();
        let mut logged = None;
        file_watch::spawn(
            "admin token",
            move || vec![file.clone()],
            move || match tokens.read() {
                Ok(digests) => {
                    if **tokens.digests.load() != digests {
                        tokens.store(digests);
                        tracing::info!(target: "audit", "reloaded the admin token");
                    }
                    logged = None;
                    true
                }
                Err(problem) => {
                    if logged.as_ref() != Some(&problem) {
                        tracing::error!(
                            problem,
                            "failed to reload the admin token; the current one stays in use"
                        );
                    }
                    logged = Some(problem);
                    false
                }
            },
        );
    }
}
