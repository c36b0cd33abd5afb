//! Checks the imports of modules: each imports only modules that ARCHITECTURE.md draws below it, so there are no cycles, and
//! `config` imports no other part of the program. Reads the sources, without test code. Also checks the profiles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules that `config` may import.
const BELOW_CONFIG: [&str; 1] = ["private_dir"];
/// Files that are compiled only for tests.
const TESTS: [&str; 3] = ["tests.rs", "year.rs", "structure.rs"];

type Imports = BTreeMap<String, BTreeSet<String>>;

/// Adds the imports of one file to those of its top-level module. `path` is its module path, outermost first.
fn read(file: &Path, path: &[String], imports: &mut Imports) {
    let source = fs::read_to_string(file).unwrap();
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: Vec<&str> =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let root = "super::".repeat(path.len());
    let found = imports.entry(path[0].clone()).or_default();
    for start in ["crate::", &root] {
        for (at, _) in code.match_indices(start) {
            let part_of_longer = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if code[..at].ends_with(part_of_longer) {
                continue;
            }
            let rest = &code[at + start.len()..];
            match rest.strip_prefix('{') {
                None => found.extend(first_word(rest)),
                Some(group) => {
                    let mut depth = 0;
                    let in_group = group.split_inclusive(['{', '}', ',']).map_while(|item| {
                        let at_depth = depth;
                        depth += match item.chars().last() {
                            Some('{') => 1,
                            Some('}') => -1,
                            _ => 0,
                        };
                        (at_depth >= 0).then_some((at_depth, item))
                    });
                    found.extend(
                        in_group
                            .filter(|(d, _)| *d == 0)
                            .filter_map(|(_, item)| first_word(item.trim())),
                    );
                }
            }
        }
    }
}

fn first_word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn walk(dir: &Path, path: &[String], imports: &mut Imports) {
    for entry in fs::read_dir(dir).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let mut path = path.to_vec();
        if file.is_dir() {
            path.push(name);
            walk(&file, &path, imports);
        } else if let Some(stem) = name.strip_suffix(".rs")
            && !TESTS.contains(&name.as_str())
        {
            if stem != "mod" {
                path.push(stem.to_owned());
            }
            read(&file, &path, imports);
        }
    }
}

/// The imports of each top-level module of a crate.
fn imports(name: &str) -> Imports {
    let mut imports = Imports::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    walk(&crates.join(name).join("src"), &[], &mut imports);
    for top in ["lib", "main"] {
        imports.remove(top);
    }
    let modules: BTreeSet<String> = imports.keys().cloned().collect();
    for (module, of) in &mut imports {
        of.retain(|other| other != module && modules.contains(other));
    }
    imports
}

/// The row of each module in a crate's diagram in ARCHITECTURE.md, counted from the top.
fn diagram(name: &str) -> BTreeMap<&'static str, usize> {
    let text = include_str!("../../../ARCHITECTURE.md");
    let section = text.split(&format!("## Modules of `{name}`")).nth(1).unwrap();
    let diagram = section.split("```").nth(1).unwrap();
    let rows = diagram.lines().filter(|line| !line.is_empty()).enumerate();
    let names = |(row, line): (usize, &'static str)| {
        let names = line.split_at_checked(NAMES).map_or(line, |(names, _)| names);
        names.split_whitespace().map(move |name| (name, row))
    };
    rows.flat_map(names).collect()
}

/// The column where the names of modules end and their descriptions start.
const NAMES: usize = 40;

#[test]
fn modules_import_only_modules_below_them_in_the_diagram() {
    for name in ["wiretight", "wiretight-proxy"] {
        let (imports, rows) = (imports(name), diagram(name));
        let (drawn, there): (Vec<_>, Vec<_>) = (rows.keys().collect(), imports.keys().collect());
        assert_eq!(
            drawn, there,
            "the modules in the diagram of {name} in ARCHITECTURE.md, and in its sources"
        );
        for (module, of) in &imports {
            for other in of {
                let (above, below) = (rows[module.as_str()], rows[other.as_str()]);
                assert!(above < below, "{name}: {module} imports {other}, which is not below it");
            }
        }
    }
}

#[test]
fn config_imports_no_other_part_of_the_program() {
    let imports = imports("wiretight");
    let of = &imports["config"];
    let parts: Vec<_> = of.iter().filter(|m| !BELOW_CONFIG.contains(&m.as_str())).collect();
    assert!(parts.is_empty(), "{parts:?}: types of settings belong into config");
    // Control: known imports are found.
    assert!(imports["node"].contains("authority") && imports["intercept"].contains("sandbox"));
}

/// A profile inherits the settings for single packages, and one for all packages does not replace them.
#[test]
fn what_ships_is_optimised_completely() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let packages = |profile: &str| manifest["profile"][profile]["package"].as_table().unwrap();
    for (package, settings) in packages("release") {
        if settings.get("opt-level").is_some() {
            let ships = packages("dist").get(package).and_then(|p| p.get("opt-level"));
            assert_eq!(ships.and_then(|level| level.as_integer()), Some(3), "{package}");
        }
    }
}
