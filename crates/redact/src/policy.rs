//! Compiled rules of redaction. A `Policy` that exists is valid: compilation reports all mistakes
//! of the rules at once.

use std::fmt;

use super::Action;
use super::change_entries::LogNames;
use super::names::{Names, Pattern};
use super::selectors::{Selector, Selectors};
use telecomx_api::AccessLevel;

/// Rules as written in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The lowest access level that sees everything.
    pub reveal_to: AccessLevel,
    /// Names of members, at any depth, below which every scalar is secret unless `public` names it.
    pub roots: Vec<String>,
    /// Selectors, relative to a root, of scalars that every level may see.
    pub public: Vec<String>,
    /// Patterns for names of members that are secret outside the roots.
    pub secret_names: Vec<String>,
    pub action: Action,
}

/// Compiled rules: immutable, shared behind an `Arc`.
pub struct Policy {
    rules: Rules,
    fingerprint: u64,
    pub(super) names: Names,
    /// Set if the responses are entries of the change log.
    pub(super) log: Option<LogNames>,
    pub(super) selectors: Selectors,
}

impl Policy {
    /// Compiles the rules.
    ///
    /// # Errors
    /// All mistakes in the rules.
    pub fn compile(rules: &Rules) -> Result<Policy, Vec<RuleError>> {
        Policy::build(rules.clone(), None)
    }

    /// Derives the policy of one forward rule: these rules, with other patterns for secret names.
    ///
    /// `changes`: the responses are entries of the change log, which quote secrets in strings and
    /// in the sides of a change; see [`redact`](super::redact).
    pub fn for_forward(
        &self,
        secret_names: &[String],
        changes: bool,
    ) -> Result<Policy, Vec<RuleError>> {
        let log = changes.then(|| LogNames::new(&self.rules.public, &self.rules.secret_names));
        Policy::build(Rules { secret_names: secret_names.to_vec(), ..self.rules.clone() }, log)
    }

    fn build(rules: Rules, log: Option<LogNames>) -> Result<Policy, Vec<RuleError>> {
        let mut errors = Vec::new();
        let roots = parse_all(Rule::Root, &rules.roots, Pattern::root, &mut errors);
        let public = parse_all(Rule::Public, &rules.public, Selector::parse, &mut errors);
        let secrets = parse_all(Rule::SecretName, &rules.secret_names, Pattern::glob, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Policy {
            fingerprint: fingerprint(&rules, log.is_some()),
            names: Names::new(&roots, &secrets, log.is_some()),
            selectors: Selectors::new(&public),
            rules,
            log,
        })
    }

    /// Whether this level sees everything.
    pub fn reveals_to(&self, level: AccessLevel) -> bool {
        level >= self.rules.reveal_to
    }

    /// The rules as they were written.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Whether the sides of a change are hidden in objects that mention a root.
    pub fn hides_changes(&self) -> bool {
        self.log.is_some()
    }

    /// Whether a name means a secret or a root.
    pub fn is_secret_name(&self, name: &[u8]) -> bool {
        let meaning = self.names.meaning(name);
        meaning.secret || meaning.root
    }

    /// Number that is equal for equal rules in every process and release of this format, and
    /// differs for different rules.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("rules", &self.rules)
            .field("hides_changes", &self.hides_changes())
            .finish_non_exhaustive()
    }
}

fn parse_all<T>(
    which: Rule,
    texts: &[String],
    parse: fn(&str) -> Result<T, String>,
    errors: &mut Vec<RuleError>,
) -> Vec<T> {
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(rule) => parsed.push(rule),
            Err(reason) => errors.push(RuleError { which, index, text: text.clone(), reason }),
        }
    }
    parsed
}

/// Digest of every field without a key; lengths come first so that different rules cannot have the
/// same input.
fn fingerprint(rules: &Rules, hides_changes: bool) -> u64 {
    let Rules { reveal_to, roots, public, secret_names, action } = rules;
    let mut hasher = blake3::Hasher::new();
    let mut field = |texts: &[&str]| {
        hasher.update(&(texts.len() as u64).to_le_bytes());
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    };
    field(&[reveal_to.as_str(), action.as_str(), if hides_changes { "changes" } else { "" }]);
    for list in [roots, public, secret_names] {
        field(&list.iter().map(String::as_str).collect::<Vec<_>>());
    }
    hasher.finalize().as_bytes().first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// One of the lists of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Root,
    Public,
    SecretName,
}

impl Rule {
    /// The key of the list in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Rule::Root => "roots",
            Rule::Public => "public",
            Rule::SecretName => "secret_names",
        }
    }

    /// Checks the grammar of a rule.
    ///
    /// # Errors
    /// The mistake.
    pub fn check(self, text: &str) -> Result<(), String> {
        match self {
            Rule::Root => Pattern::root(text).map(drop),
            Rule::Public => Selector::parse(text).map(drop),
            Rule::SecretName => Pattern::glob(text).map(drop),
        }
    }
}

/// A rule that cannot be compiled, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    pub which: Rule,
    /// Index of the rule in its list, from 0.
    pub index: usize,
    /// The rule as it was written.
    pub text: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}] = {:?}: {}", self.which.as_str(), self.index, self.text, self.reason)
    }
}

impl std::error::Error for RuleError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            reveal_to: AccessLevel::Reseller,
            roots: vec!["integrations".into()],
            public: vec!["**.enabled".into()],
            secret_names: vec!["*password*".into()],
            action: Action::Remove,
        }
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let rules = Rules {
            roots: vec!["integrations".into(), "a.b".into(), String::new()],
            public: vec!["a..b".into(), "**.enabled".into(), "cal*".into()],
            secret_names: vec!["*".into()],
            ..rules()
        };
        let errors = Policy::compile(&rules).unwrap_err();
        let places: Vec<_> = errors.iter().map(|error| (error.which, error.index)).collect();
        assert_eq!(
            places,
            [
                (Rule::Root, 1),
                (Rule::Root, 2),
                (Rule::Public, 0),
                (Rule::Public, 2),
                (Rule::SecretName, 0)
            ]
        );
        assert_eq!(
            errors[0].to_string(),
            "roots[1] = \"a.b\": unexpected `.`; a root is the name of one member, such as \"integrations\""
        );
    }

    #[test]
    fn fingerprint_depends_on_every_rule() {
        let fingerprint = |rules: &Rules| Policy::compile(rules).unwrap().fingerprint();
        let original = fingerprint(&rules());
        assert_eq!(original, fingerprint(&rules()));
        // Equal in every process and release: another number requires another format version.
        assert_eq!(original, 11_708_941_880_373_740_823);
        let list = |text: &str| vec![text.to_owned()];
        let others = [
            Rules { reveal_to: AccessLevel::Admin, ..rules() },
            Rules { roots: list("integration"), ..rules() },
            Rules { public: vec![], ..rules() },
            Rules { public: list("enabled"), secret_names: vec![], ..rules() },
            Rules { public: vec![], secret_names: list("enabled"), ..rules() },
            Rules { action: Action::Mask, ..rules() },
        ];
        let mut seen: Vec<_> = others.iter().map(fingerprint).collect();
        seen.push(original);
        let base = Policy::compile(&rules()).unwrap();
        assert_eq!(base.for_forward(&rules().secret_names, false).unwrap().fingerprint(), original);
        seen.push(base.for_forward(&rules().secret_names, true).unwrap().fingerprint());
        let distinct: std::collections::HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), others.len() + 2);
    }

    #[test]
    fn a_forward_policy_keeps_all_but_the_names() {
        let forward = Policy::compile(&rules()).unwrap().for_forward(&[], true).unwrap();
        assert_eq!(*forward.rules(), Rules { secret_names: vec![], ..rules() });
        assert!(forward.hides_changes());
        assert!(!Policy::compile(&rules()).unwrap().hides_changes());
        let shown = format!("{forward:?}");
        assert!(
            shown.contains("\"integrations\"") && shown.contains("hides_changes: true"),
            "{shown}"
        );
        assert!(
            forward.reveals_to(AccessLevel::Reseller) && !forward.reveals_to(AccessLevel::Owner)
        );
        assert!(forward.for_forward(&["a/b".into()], false).is_err());
    }
}
