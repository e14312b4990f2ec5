//! The identities of a connection, and how an auth request adds one.
//!
//! A connection starts with its address, scheme `ip`. What a client proves later is added and never
//! removed. Each command carries all identities, so their number and size are limited. The replies of each
//! scheme are those of ZooKeeper 3.8 with its standard providers. ACLs are checked elsewhere.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};

use crate::command::Identity;

/// Most identities of a connection, its address included. Guessed: clients have one or two.
pub const IDENTITIES_MAX: usize = 64;
/// Longest proof in bytes. Guessed: enough for user and password, and for tokens.
pub const AUTH_SIZE_MAX: usize = 4096;

/// One identity, owned by its connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OwnedIdentity {
    /// `ip`, `digest` or `super`.
    pub scheme: &'static str,
    pub id: Box<str>,
}

impl OwnedIdentity {
    /// Returns the identity as commands carry it.
    pub fn borrow(&self) -> Identity<'_> {
        Identity { scheme: self.scheme, id: &self.id }
    }

    /// Returns what whoAmI shows: the user of a digest, the id of others.
    pub fn user(&self) -> &str {
        match self.scheme {
            "digest" => self.id.split_once(':').map_or(&*self.id, |(user, _)| user),
            _ => &self.id,
        }
    }
}

/// The reason that an auth request fails. The client gets -115 (AUTHFAILED), then the connection closes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The scheme proves nothing: `world` and `auth` name no user, `x509` needs TLS, `sasl` has its own
    /// request, and others are unknown.
    #[error("the scheme {scheme:?} proves no identity; use digest or ip")]
    Scheme {
        /// The requested scheme.
        scheme: String,
    },
    /// The proof is longer than [`AUTH_SIZE_MAX`].
    #[error("credentials of {size} bytes; {AUTH_SIZE_MAX} are allowed")]
    TooLong {
        /// Its size in bytes.
        size: usize,
    },
    /// The connection has [`IDENTITIES_MAX`] identities.
    #[error("a connection may have {IDENTITIES_MAX} identities")]
    TooMany,
}

/// All identities of one connection, each once, in the order of proof.
#[derive(Debug, Clone)]
pub struct Identities {
    list: Vec<OwnedIdentity>,
}

impl Identities {
    /// Builds the identities of a new connection: only its address.
    pub fn new(address: IpAddr) -> Identities {
        Identities { list: vec![OwnedIdentity { scheme: "ip", id: host_text(address).into() }] }
    }

    /// Takes an auth request. True if it added an identity.
    ///
    /// # Errors
    /// [`AuthError`]: nothing was added, and the connection must be closed.
    pub fn authenticate(
        &mut self,
        scheme: &str,
        auth: &[u8],
        address: IpAddr,
        super_digest: Option<&str>,
    ) -> Result<bool, AuthError> {
        let shown = authenticate(scheme, auth, address, super_digest)?;
        let new: Vec<_> = shown.into_iter().filter(|one| !self.list.contains(one)).collect();
        if self.list.len() + new.len() > IDENTITIES_MAX {
            return Err(AuthError::TooMany);
        }
        let is_new = !new.is_empty();
        self.list.extend(new);
        Ok(is_new)
    }

    /// Lists the identities as commands carry them.
    pub fn iter(&self) -> impl Iterator<Item = Identity<'_>> {
        self.list.iter().map(OwnedIdentity::borrow)
    }

    /// Lists scheme and user of each identity, for whoAmI.
    pub fn who_am_i(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list.iter().map(|identity| (identity.scheme, identity.user()))
    }
}

/// Returns the identities that an auth request proves. `ip` proves the address of the connection, whatever
/// the request says. `digest` takes any bytes, even without a colon, and proves `super` too if its digest
/// is `super_digest`.
///
/// # Errors
/// [`AuthError::Scheme`], [`AuthError::TooLong`].
pub fn authenticate(
    scheme: &str,
    auth: &[u8],
    address: IpAddr,
    super_digest: Option<&str>,
) -> Result<Vec<OwnedIdentity>, AuthError> {
    if auth.len() > AUTH_SIZE_MAX {
        return Err(AuthError::TooLong { size: auth.len() });
    }
    match scheme {
        "ip" => Ok(vec![OwnedIdentity { scheme: "ip", id: host_text(address).into() }]),
        "digest" => {
            // Java decodes the bytes before it hashes them: bad UTF-8 becomes U+FFFD.
            let id = digest_id(&String::from_utf8_lossy(auth));
            let is_super = super_digest.is_some_and(|digest| digest == id);
            let mut shown = Vec::with_capacity(2);
            if is_super {
                shown.push(OwnedIdentity { scheme: "super", id: "".into() });
            }
            shown.push(OwnedIdentity { scheme: "digest", id: id.into() });
            Ok(shown)
        }
        _ => Err(AuthError::Scheme { scheme: scheme.chars().take(64).collect() }),
    }
}

/// Returns the id of `user:password`: `user:` and the base64 of the SHA-1 of both together
/// (`DigestAuthenticationProvider.generateDigest`).
pub fn digest_id(credentials: &str) -> String {
    let user = credentials.split(':').next().unwrap_or_default();
    format!("{user}:{}", STANDARD.encode(Sha1::digest(credentials.as_bytes())))
}

/// Writes an address as Java does: IPv6 in eight groups, and IPv4 even if it came inside an IPv6 one.
pub fn host_text(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:x}"));
            groups.join(":")
        }
    }
}

#[cfg(test)]
mod tests;
