//! Names and addresses of issuers that have a placeholder for the tenant, such as `https://login.example/{tenantid}/v2.0`.

/// Whether `iss` is `issuer`, with the name of a tenant in place of a placeholder.
pub(crate) fn is_expansion(issuer: &str, iss: &str) -> bool {
    let Some(placeholder) = placeholder(issuer) else { return issuer == iss };
    let parts = issuer.split_once(placeholder);
    parts.is_some_and(|(before, after)| {
        iss.strip_prefix(before).is_some_and(|rest| rest.ends_with(after))
    })
}

/// Returns the placeholder of a template, with its braces: the part that differs between tenants.
pub(crate) fn placeholder(issuer: &str) -> Option<&str> {
    let start = issuer.find('{')?;
    let end = start + issuer[start..].find('}')?;
    Some(&issuer[start..=end])
}

/// Returns the issuer of `tenant`: `template` itself, if it has no placeholder.
pub(super) fn expand(template: &str, tenant: &str) -> String {
    match placeholder(template) {
        Some(placeholder) => template.replacen(placeholder, tenant, 1),
        None => template.to_owned(),
    }
}
