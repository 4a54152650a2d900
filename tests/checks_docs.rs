//! The documentation of the checks is in step with the registry.

use std::fs;

use proxyshift::checks;

const PAGE: &str = "docs/checks.md";

#[test]
fn the_page_of_checks_is_in_step() {
    let text = checks::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all("docs").expect("docs/");
        fs::write(PAGE, &text).expect("docs/checks.md");
    }
    let page = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(page == text, "{PAGE} is old: run UPDATE_DOCS=1 cargo test --test checks_docs");
}
