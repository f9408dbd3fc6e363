//! The operator's edits of header fields.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::identity_headers::Statement;
use crate::base::header_fields::are_alike;
use crate::config::reserved_headers::remove_if;
use crate::config::route::{HeaderEdits, Template, TemplatePart};
use crate::gateway::exchange::Exchange;
use crate::token::Principal;

/// The edits of one direction: `remove`, then `set`, then `add`.
#[derive(Debug, Default)]
pub(crate) struct HeaderEditor(HeaderEdits);

impl From<HeaderEdits> for HeaderEditor {
    fn from(edits: HeaderEdits) -> Self {
        Self(edits)
    }
}

impl HeaderEditor {
    /// Whether there are no edits.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.remove.is_empty() && self.0.set.is_empty() && self.0.add.is_empty()
    }

    /// Returns the names of the fields that are removed or set: whatever the other side says in them is gone.
    pub(crate) fn decided(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.remove.iter().chain(self.0.set.iter().map(|(name, _)| name))
    }

    /// Removes the fields of a client whose names upstreams cannot tell from one that is removed or set. The fields of
    /// exactly these names are left to [`Self::apply`].
    pub(crate) fn remove_other_spellings(&self, headers: &mut HeaderMap) {
        remove_if(headers, |sent| self.decided().any(|name| name != sent && are_alike(name, sent)));
    }

    /// Applies the edits. A field whose value is empty is left out.
    pub(crate) fn apply(
        &self,
        headers: &mut HeaderMap,
        principal: Option<&Principal>,
        exchange: &Exchange,
    ) {
        for name in &self.0.remove {
            headers.remove(name);
        }
        for (name, template) in &self.0.set {
            match fill(template, principal, exchange) {
                Some(value) => headers.insert(name, value),
                None => headers.remove(name),
            };
        }
        for (name, template) in &self.0.add {
            if let Some(value) = fill(template, principal, exchange) {
                headers.append(name, value);
            }
        }
    }
}

fn fill(
    Template(pieces): &Template,
    principal: Option<&Principal>,
    exchange: &Exchange,
) -> Option<HeaderValue> {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            TemplatePart::Text(fixed) => text.push_str(fixed),
            TemplatePart::Claim(path) => {
                let statement = principal.and_then(|principal| Statement::about(principal, path));
                text.extend(statement.map(Statement::text));
            }
            TemplatePart::ClientIp => text.push_str(&exchange.client.to_string()),
            TemplatePart::RequestId => {
                text.push_str(exchange.request_id.to_str().unwrap_or_default());
            }
        }
    }
    // The operator's text is used as written: only claims are encoded. Blanks at its ends are no part of a value (RFC 9110
    // §5.5), and malformed in HTTP/2.
    let text = text.trim_ascii();
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok())?
}
