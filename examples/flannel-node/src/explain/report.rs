//! An explanation for people and for programs.

use std::fmt::Write;

use super::walk::Explanation;

/// One JSON object in one line.
pub(crate) fn json(explanation: &Explanation) -> String {
    serde_json::to_string(explanation).expect("addresses and texts are valid JSON")
}

/// A line for each link that holds, and one for the end of the way.
pub(crate) fn text(explanation: &Explanation) -> String {
    let mut text = String::new();
    for passed in &explanation.passed {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "ok      {:17} {}", passed.link, passed.says);
    }
    let (source, destination) = (explanation.source, explanation.destination);
    let _ = match &explanation.broken {
        Some(broken) => {
            let (link, says, remedy) = (broken.link, &broken.says, &broken.remedy);
            writeln!(text, "broken  {link:17} {says}\nremedy  {:17} {remedy}", "")
        }
        None => writeln!(
            text,
            "{source} and {destination} reach each other, as far as this host can tell"
        ),
    };
    text
}
