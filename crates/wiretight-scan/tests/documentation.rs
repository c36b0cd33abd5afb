//! The tables of facts, rules and profiles in docs/scan.md must match the code.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::fmt::Write as _;
use std::path::Path;

use wiretight_scan::facts::TABLE;
use wiretight_scan::judge::Profile;
use wiretight_scan::judge::rules::{RULES, Rule, Test};

#[test]
fn the_tables_in_the_page_match_the_code() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scan.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let mut right = text.clone();
    for (name, table) in [("facts", facts()), ("rules", rules()), ("profiles", profiles())] {
        let begin = format!("<!-- {name} -->\n");
        let from = right.find(&begin).unwrap_or_else(|| panic!("no {begin}")) + begin.len();
        let to = from + right[from..].find("<!-- end -->").unwrap();
        right.replace_range(from..to, &table);
    }
    if right != text {
        let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scan.md");
        std::fs::write(&new, right).unwrap();
        panic!("docs/scan.md is out of date; update it: cp {} docs/scan.md", new.display());
    }
}

fn facts() -> String {
    let mut table = "| id | meaning of yes, and the value |\n|---|---|\n".to_owned();
    for entry in TABLE {
        let _ = writeln!(table, "| `{}` | {} |", entry.id, entry.what);
    }
    table
}

fn rules() -> String {
    let mut table = "| rule | level at most | problem | standard | fact | what to change |\n\
                     |---|---|---|---|---|---|\n"
        .to_owned();
    for rule in RULES {
        let Rule { id, level, what, standard, change, .. } = rule;
        let fact = match rule.test {
            Test::Yes(fact) => format!("`{fact}`"),
            Test::No(fact) => format!("`{fact}`: no"),
            Test::MustNot(fact) => format!("`{fact}`; required"),
            Test::Must(fact) => format!("`{fact}`: no; required"),
            Test::Check(_) => "several".to_owned(),
        };
        let _ = writeln!(table, "| `{id}` | {level} | {what} | {standard} | {fact} | {change} |");
    }
    table
}

fn profiles() -> String {
    let mut table = String::new();
    for profile in Profile::ALL {
        let _ = writeln!(table, "**`{profile}`**: {}\n", profile.title());
        table.push_str("| must not be the case | standard |\n|---|---|\n");
        for rule in profile.rules() {
            let _ = writeln!(table, "| `{}` {} | {} |", rule.id, rule.what, rule.standard);
        }
        table.push('\n');
    }
    table
}
