//! klog's levels and `--vmodule`, as levels of ours.

use std::str::FromStr;

use tracing::level_filters::LevelFilter;

/// Levels for single modules, as `--vmodule` gives them. The first pattern that matches decides.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ModuleLevels(Vec<(String, LevelFilter)>);

/// The level that klog's number stands for.
pub(crate) const fn level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

impl ModuleLevels {
    /// The level for the module at `path`, such as `flannel_core::node::driver`, if a pattern matches it: the whole path, or
    /// one of its parts.
    pub(crate) fn level_of(&self, path: &str) -> Option<LevelFilter> {
        let fits = |pattern: &str| {
            matches(pattern, path) || path.split("::").any(|part| matches(pattern, part))
        };
        self.0.iter().find(|(pattern, _)| fits(pattern)).map(|(_, level)| *level)
    }

    /// The most that any pattern asks for.
    pub(crate) fn most(&self) -> Option<LevelFilter> {
        self.0.iter().map(|(_, level)| *level).max()
    }
}

impl FromStr for ModuleLevels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let levels = text.split(',').filter(|one| !one.is_empty()).map(|one| {
            let (pattern, number) =
                one.split_once('=').filter(|(pattern, _)| !pattern.is_empty())?;
            Some((pattern.replace('-', "_"), level(number.parse().ok()?)))
        });
        levels.collect::<Option<_>>().map(Self).ok_or_else(|| {
            "expected patterns with levels from 0 to 255, such as node=2,flannel_netlink*=1".into()
        })
    }
}

/// Whether a pattern with `*` for any letters and `?` for any one fits the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and what it has swallowed so far.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(letter) if *letter == b'?' || *letter == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, swallowed)) = star else { return false };
                star = Some((at, swallowed + 1));
                p = at + 1;
                t = swallowed + 1;
            }
        }
    }
    pattern[p..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pattern_fits_a_path_or_one_of_its_parts() {
        let levels: ModuleLevels =
            "driver=1,flannel-netlink*=2,node=0,x".parse().unwrap_or_default();
        assert_eq!(levels, ModuleLevels::default(), "x has no level");
        let levels: ModuleLevels = "driver=1,flannel-netlink*=2,n?de=0".parse().unwrap();
        assert_eq!(levels.level_of("flannel_core::node::driver"), Some(LevelFilter::DEBUG));
        assert_eq!(levels.level_of("flannel_netlink::table"), Some(LevelFilter::TRACE));
        assert_eq!(levels.level_of("flannel_core::node"), Some(LevelFilter::INFO));
        assert_eq!(levels.level_of("flannel_core::nodes"), None);
        assert_eq!(levels.most(), Some(LevelFilter::TRACE));
        assert_eq!("".parse(), Ok(ModuleLevels::default()));
        for wrong in ["node", "=1", "node=x", "node=-1", "node=256"] {
            assert!(wrong.parse::<ModuleLevels>().unwrap_err().contains("node=2"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_regular_expressions_do(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            let expression = format!("^{}$", pattern.replace('*', ".*").replace('?', "."));
            let expected = regex_lite::Regex::new(&expression).unwrap().is_match(&text);
            prop_assert_eq!(matches(&pattern, &text), expected);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<ModuleLevels>().map(|levels| levels.level_of(&text));
        }
    }
}
