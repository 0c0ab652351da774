//! Credentials in a `Location` of the API, which must not reach a client.

use percent_encoding::percent_decode;

use super::Token;

/// Parts of names of credentials, without case and punctuation.
const CREDENTIAL_WORDS: [&str; 5] = ["token", "apikey", "authorization", "password", "secret"];

/// Maximum number of decoding rounds: a URL may be a parameter of a URL.
const MAX_DECODE_ROUNDS: usize = 4;

/// Whether a `Location` contains a credential: this token, a user with a password, or a part with a
/// credential's name. `is_secret`: whether another name means a secret.
pub fn holds_credential_or_secret(
    location: &[u8],
    token: &Token,
    is_secret: impl Fn(&str) -> bool,
) -> bool {
    let Ok(mut text) = std::str::from_utf8(location).map(str::to_owned) else { return true };
    for _ in 0..MAX_DECODE_ROUNDS {
        if text.contains(token.expose())
            || has_user(&text)
            || text.split(is_delimiter).any(|part| is_named(part, &is_secret))
        {
            return true;
        }
        let decoded =
            percent_decode(text.as_bytes()).decode_utf8().map(std::borrow::Cow::into_owned);
        match decoded {
            Ok(decoded) if decoded == text => return false,
            Ok(decoded) => text = decoded,
            Err(_) => return true,
        }
    }
    true
}

fn is_delimiter(character: char) -> bool {
    matches!(character, '/' | '?' | '#' | '&' | ';' | '=' | ',')
}

fn has_user(text: &str) -> bool {
    text.match_indices("//").any(|(at, _)| {
        let authority = text[at + 2..].split(['/', '?', '#']).next().unwrap_or_default();
        authority.contains('@')
    })
}

fn is_named(part: &str, is_secret: impl Fn(&str) -> bool) -> bool {
    let folded: String =
        part.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    CREDENTIAL_WORDS.iter().any(|word| folded.contains(word)) || is_secret(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_with_a_credential_or_secret_is_found() {
        let token = Token::parse(b"tok+a/b").unwrap();
        let holds = |text: &str| {
            holds_credential_or_secret(text.as_bytes(), &token, |name| name.contains("client_key"))
        };
        for clean in [
            "/v2/customer/73469a52f4fd7f77ec7b28cc/name",
            "https://api.example/x?lang=da#top",
            "",
            "../name",
            "/a%20b",
        ] {
            assert!(!holds(clean), "{clean}");
        }
        for secret in [
            "/x?token=abc",
            "/x?access_token=abc",
            "/x?a=1&Token%5B%5D=abc",
            "/x#id_token=abc",
            "/employee/5f00000000000000000000aa/token/abc",
            "https://user:pw@api.example/x",
            "//user@api.example/x",
            "/x?q=tok+a/b",
            "/x?q=tok%2Ba%2Fb",
            "/login?next=%2Fx%3Ftoken%3Dabc",
            "/login?next=%252Fx%253Ftok%25252Ba%25252Fb",
            "/x?agreementGrantToken=1",
            "/x?clientSecret=1",
            "/x?client_key=1",
            "/x?q=%ff",
        ] {
            assert!(holds(secret), "{secret}");
        }
        assert!(holds_credential_or_secret(b"/\xff", &token, |_| false));
    }
}
