//! skopeo and Debian's Docker registry: an image is pushed, pulled and deleted; the registry's `Location`s lead back through
//! the gateway.

use std::fs;
use std::process::{Command, Stdio};

use super::{Route, listens, python};
use crate::support::{Running, free_port, programs, run};

#[tokio::test]
async fn skopeo_pushes_and_pulls_an_image() {
    let suite = "clients: docker";
    let names = ["docker-registry", "skopeo"];
    let Some([registry, skopeo]) = programs(suite, names) else { return };
    let Some(mut image) = python(suite, "oci_image.py") else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let file = format!(
        "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }}, delete: {{ enabled: true }} }}\n\
         http: {{ addr: \"127.0.0.1:{port}\" }}\n",
        path("registry")
    );
    fs::write(path("registry.yml"), file).expect("a file");
    let mut command = Command::new(registry);
    command.args(["serve", &path("registry.yml")]).stdout(Stdio::null()).stderr(Stdio::null());
    let _registry = Running::start(&mut command);
    listens(port).await;
    let route = Route::start(&format!("http://127.0.0.1:{port}"), "").await;
    run(image.arg(path("image")).arg("9000000"), "");
    let skopeo = |arguments: &[&str]| {
        let mut command = Command::new(&skopeo);
        run(command.arg("--insecure-policy").args(arguments).env("HOME", folder.path()), "")
    };
    let sent = format!("oci:{}:v1", path("image"));

    for (round, authority) in
        [route.clear(), route.secure.trim_start_matches("https://")].into_iter().enumerate()
    {
        let there = format!("docker://{authority}/team{round}/app:v1");
        let back = path(&format!("back{round}"));
        skopeo(&["copy", "--dest-tls-verify=false", &sent, &there]);
        skopeo(&["copy", "--src-tls-verify=false", &there, &format!("oci:{back}:v1")]);
        let tags = skopeo(&["list-tags", "--tls-verify=false", &there.replace(":v1", "")]);
        skopeo(&["delete", "--tls-verify=false", &there]);

        assert!(tags.contains("\"v1\""), "{tags}");
        let blobs = |image: &str| {
            let blobs = fs::read_dir(format!("{image}/blobs/sha256")).expect("a folder");
            let mut names: Vec<_> = blobs.map(|blob| blob.expect("a file").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(blobs(&back), blobs(&path("image")));
    }
}
