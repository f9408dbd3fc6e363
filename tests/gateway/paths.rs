//! The path that chose the route is the path that the service sees (security.md, "Path and route confusion").

use crate::support::{Gateway, Upstream};

#[test]
fn every_spelling_of_a_protected_path_is_protected() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for target in [
        "/admin",
        "/admin/",
        "/admin/users",
        "//admin/users",
        "///admin",
        "/./admin/users",
        "/public/../admin/users",
        "/public/%2e%2e/admin/users",
        "/public/%2E./admin",
        "/%61dmin/users",
        "/adm%69n",
        "/public//../admin",
        "/admin?public",
        "/admin%3Fpublic",
        "/admin?/../public",
        "/x/../admin/./users",
    ] {
        let answer = gateway.get(target, "");
        assert!(matches!(answer.status, 404 | 400), "{target}: {}", answer.status);
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn a_path_that_can_be_read_in_two_ways_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for target in [
        "/public/..%2fadmin",
        "/public/..%2Fadmin",
        "/public%2f..%2fadmin",
        "/public/..%5cadmin",
        "/public/..\\admin",
        "/public/..;/admin",
        "/public/..;a=b/admin",
        "/public/.;/admin",
        "/public/%2e%2e;/admin",
        "/public/%00",
        "/public/%0d%0aX-Injected:%201",
        "/public/%",
        "/public/%zz",
        "/..",
        "/../admin",
        "/public/../../admin",
        "/public/;/admin",
        "/public/%c0%ae%c0%ae/admin",
        "/public/..%c0%afadmin",
        "/public/..%e0%80%afadmin",
    ] {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn what_is_matched_is_what_is_sent() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    for (target, sent) in [
        ("/public/%61", "/public/a"),
        ("/public//a/./b/../c", "/public/a/c"),
        ("/x/../public/a", "/public/a"),
        ("/public/a%20b?q=%2F..%2F&r=a//b", "/public/a%20b?q=%2F..%2F&r=a//b"),
        ("/public/%c3%a9", "/public/%C3%A9"),
        ("http://evil/public/a", "/public/a"),
    ] {
        let before = service.seen().len();
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.seen()[before].target(), sent, "{target}");
    }
}

/// Servlet containers cut parameters off before they look at a path.
#[test]
fn parameters_do_not_hide_a_protected_path() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: all, path: /**, upstream: service, auth: none }}\n\
         \x20 - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for target in
        ["/admin;x", "/admin;x=y/users", "/admin%3Bx/users", "/admin;/users", "/admin;%2e/a"]
    {
        assert_eq!(gateway.get(target, "").status, 400, "{target}");
    }
    assert_eq!(gateway.get("/admin/users;x", "").status, 404);
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    assert_eq!(gateway.get("/orders;v=1/a;b", "").status, 200);
    assert_eq!(service.only().target(), "/orders;v=1/a;b");
}

/// CVE-2026-26205: the first segment is never taken for an authority.
#[test]
fn a_path_that_begins_with_two_slashes_names_no_host() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &guarded(&service));

    assert_eq!(gateway.get("//evil.test/public/a", "").status, 404);
    assert!(service.seen().is_empty());
}

/// CVE-2026-40912, CVE-2026-48020: a prefix is cut off the normal form, at a segment's end.
#[test]
fn a_rewritten_path_cannot_leave_its_place() {
    let service = Upstream::polite();
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: strip, path: /api/**, upstream: service, auth: none, rewrite: {{ strip_prefix: /api, add_prefix: /v1 }} }}\n\
         \x20 - {{ id: whole, path: \"/user/{{name}}\", upstream: service, auth: none, rewrite: {{ path: \"/people/{{name}}\" }} }}\n",
        service.url()
    );
    let gateway = Gateway::start("", &rest);

    for (target, sent) in [
        ("/api/a", "/v1/a"),
        ("/%61pi/a%20b", "/v1/a%20b"),
        ("/api//a", "/v1/a"),
        ("/api/b/../a?x=1", "/v1/a?x=1"),
        ("/user/a%20b?x", "/people/a%20b?x"),
    ] {
        let before = service.seen().len();
        assert_eq!(gateway.get(target, "").status, 200, "{target}");
        assert_eq!(service.seen()[before].target(), sent, "{target}");
    }
    let before = service.seen().len();
    for target in [
        "/api../a",
        "/apix/a",
        "/api/../secret",
        "/api/%2e%2e/secret",
        "/user/a%2fb",
        "/user/%0d%0a",
    ] {
        let status = gateway.get(target, "").status;
        assert!(matches!(status, 400 | 404), "{target}: {status}");
    }
    assert_eq!(service.seen().len(), before);
}

/// Everything is open but what is below `/admin`, and that is closed to everybody.
fn guarded(service: &Upstream) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
         \x20 - {{ id: public, path: /public/**, upstream: service, auth: none }}\n\
         \x20 - {{ id: admin, path: /admin/**, upstream: service, auth: none, enabled: false }}\n",
        service.url()
    )
}
