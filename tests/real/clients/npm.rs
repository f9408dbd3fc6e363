//! npm: a scoped package, whose name npm writes as `@scope%2fname`, is published, installed, tagged and withdrawn.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Route;
use crate::support::{programs, run};

#[tokio::test]
async fn npm_publishes_and_installs_a_scoped_package() {
    let suite = "clients: npm";
    let Some([npm]) = programs(suite, ["npm"]) else { return };
    let Some((_registry, route)) = Route::to_script(suite, "npm_registry.py", &[]).await else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    let (url, authority) = (&route.gateway.url, route.clear());
    write(
        "npmrc",
        &format!("registry={url}/\n//{authority}/:_authToken=a-token\naudit=false\nfund=false\n"),
    );
    write("tools/package.json", r#"{"name":"@acme/tools","version":"1.0.0"}"#);
    write("tools/index.js", "module.exports = 42");
    write("shop/package.json", r#"{"name":"shop","version":"1.0.0"}"#);
    let npm = |within: &str, arguments: &[&str]| {
        let mut command = Command::new(&npm);
        command
            .current_dir(folder.path().join(within))
            .args(arguments)
            .env("HOME", folder.path())
            .env("npm_config_userconfig", folder.path().join("npmrc"))
            .env("npm_config_cache", folder.path().join("cache"))
            .env("npm_config_update_notifier", "false");
        run(&mut command, "")
    };

    npm("tools", &["publish"]);
    npm("shop", &["install", "@acme/tools"]);
    npm("shop", &["dist-tag", "add", "@acme/tools@1.0.0", "beta"]);
    let tagged = npm("shop", &["view", "@acme/tools@beta", "version"]);
    npm("shop", &["unpublish", "--force", "@acme/tools"]);

    let installed = folder.path().join("shop/node_modules/@acme/tools/index.js");
    assert_eq!(read(&installed), "module.exports = 42");
    let lock = read(&folder.path().join("shop/package-lock.json"));
    assert!(lock.contains(&format!("{url}/@acme/tools/-/@acme/tools-1.0.0.tgz")), "{lock}");
    assert!(tagged.contains("1.0.0"), "{tagged}");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a file")
}
