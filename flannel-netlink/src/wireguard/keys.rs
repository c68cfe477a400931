use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD};
use zeroize::{Zeroize, Zeroizing};

/// A public key. Its text is base64, as with `wg`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKey([u8; LENGTH]);

/// A private or preshared key. It is overwritten when it is dropped, and its `Debug` output does not show it.
#[derive(Clone, Eq, PartialEq)]
pub struct SecretKey(Box<[u8; LENGTH]>);

/// A text that is not a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key is 32 bytes in base64, 44 characters")]
pub struct InvalidKey;

impl PublicKey {
    /// The key of these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl SecretKey {
    /// The key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Box::new(bytes))
    }

    /// The private key that the kernel makes of this one: Curve25519 leaves five bits no choice.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.0[0] &= 0b1111_1000;
        self.0[31] = self.0[31] & 0b0111_1111 | 0b0100_0000;
        self
    }

    /// Its text in base64, which must not be logged.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64_STANDARD.encode(self.0.as_slice()))
    }

    /// Its bytes, which must not be logged. Copies of them are not overwritten when the key is dropped.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `None` for zeros, by which the kernel says that there is none.
    pub(super) fn of_kernel(bytes: &[u8]) -> Option<Self> {
        let bytes = <&[u8; LENGTH]>::try_from(bytes).ok()?;
        (*bytes != [0; LENGTH]).then(|| {
            let mut key = Self::new([0; LENGTH]);
            key.0.copy_from_slice(bytes);
            key
        })
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut bytes = [0; LENGTH];
        decode(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl FromStr for SecretKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut key = Self::new([0; LENGTH]);
        decode(text, &mut key.0)?;
        Ok(key)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

/// Writes the key to its place, and leaves no copy on the stack.
fn decode(text: &str, key: &mut [u8; LENGTH]) -> Result<(), InvalidKey> {
    let mut bytes = Zeroizing::new([0; LENGTH + 1]);
    match BASE64_STANDARD.decode_slice(text, &mut *bytes) {
        Ok(LENGTH) => key.copy_from_slice(&bytes[..LENGTH]),
        _ => return Err(InvalidKey),
    }
    Ok(())
}

/// Of Curve25519, and of preshared keys.
const LENGTH: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_shows_nothing() {
        let key = SecretKey::new([7; 32]);
        assert_eq!(format!("{key:?} {:?}", Some(&key)), "SecretKey Some(SecretKey)");
        assert_eq!(key.reveal().as_str(), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    }

    proptest! {
        #[test]
        fn keys_are_read_as_written(bytes: [u8; 32]) {
            let (public, secret) = (PublicKey::new(bytes), SecretKey::new(bytes));
            prop_assert_eq!(public.to_string().parse(), Ok(public));
            prop_assert_eq!(secret.reveal().parse(), Ok(secret));
        }

        #[test]
        fn no_other_text_is_a_key(
            head in "[A-Za-z0-9+/]{42}",
            last in "[A-Za-z0-9+/]",
            at in 0..44_usize,
            other in "[A-Za-z0-9+/=\\PC]{0,2}",
        ) {
            let text = format!("{head}{last}=");
            // 32 bytes leave two bits of the last character, which are zeros.
            let is_key = "AEIMQUYcgkosw048".contains(&last);
            let read = text.parse::<PublicKey>().map(|key| key.to_string());
            prop_assert_eq!(read, if is_key { Ok(text.clone()) } else { Err(InvalidKey) });
            let altered = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            if let Ok(key) = altered.parse::<PublicKey>() {
                prop_assert_eq!(key.to_string(), altered);
            }
        }
    }
}
