//! Checks header fields: `match_headers`, `headers`, `cors`.

use core::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use url::Url;

use super::{Check, MAX_DURATION};
use crate::config::de::field::{Field, ListOrNone, Map, OneOrMany, Spanned};
use crate::config::de::units::{FromScalar, InvalidValue, Scalar};
use crate::config::fault::{Code, Position};
use crate::config::file::routes as file;
use crate::config::file::value::KeywordOr;
use crate::config::patterns;
use crate::config::route::{Cors, HeaderMatch, ValueMatch};

impl Check<'_> {
    pub(super) fn match_headers(
        &mut self,
        set: &Field<Map<KeywordOr<HeaderValue, file::Pattern>>>,
    ) -> Vec<HeaderMatch> {
        if let Some(map) = set.get() {
            self.not_empty("match_headers", map);
        }
        let mut all: Vec<HeaderMatch> = Vec::new();
        for (at, value) in set.get().into_iter().flat_map(|map| map.value.iter()) {
            let Some(name) = self.parsed::<HeaderName>(at) else { continue };
            if all.iter().any(|other| other.name == name) {
                self.fault(
                    Code::C111,
                    at.at,
                    format!("{} is repeated", at.shown()),
                    "keep one of them",
                );
            }
            let value = match &value.value {
                KeywordOr::Scalar(value) => ValueMatch::Exact(value.0.clone()),
                KeywordOr::Mapping(pattern) => {
                    let help = "write { regex: \"v[12]\" }";
                    let Some(regex) = self.required(&pattern.regex, value.at, "regex", help) else {
                        continue;
                    };
                    ValueMatch::Regex(regex.value.0.clone())
                }
            };
            all.push(HeaderMatch { name, value });
        }
        all
    }

    /// Checks the names of the fields that `keys` edit.
    pub(super) fn header_names(&mut self, keys: &file::Route) {
        let Some(headers) = keys.headers.get() else { return };
        for edits in [&headers.request, &headers.response].into_iter().filter_map(Field::get) {
            for (name, _) in [&edits.set, &edits.add]
                .into_iter()
                .filter_map(Field::get)
                .flat_map(|map| map.value.iter())
            {
                self.field(name);
            }
            for name in edits.remove.get().into_iter().flat_map(|list| &list.value.items) {
                self.not_framing(&name.value.0, name.at);
            }
        }
    }

    /// Returns the name of a field that may be set.
    pub(super) fn field(&mut self, name: &Spanned<String>) -> Option<HeaderName> {
        let parsed = self.parsed::<HeaderName>(name)?;
        self.not_framing(&parsed, name.at).then_some(parsed)
    }

    pub(super) fn not_framing(&mut self, name: &HeaderName, at: Position) -> bool {
        let framing = patterns::is_framing(name);
        if framing {
            let message = format!(
                "`{name}` belongs to the connection: changing it would allow request smuggling"
            );
            self.fault(
                Code::C109,
                at,
                message,
                "remove it; `host_header` of an upstream sets Host",
            );
        }
        !framing
    }

    /// Parses a text with the grammar of `T`.
    pub(super) fn parsed<T: FromScalar>(&mut self, text: &Spanned<String>) -> Option<T> {
        T::parse(&text.value).map_err(|wrong| self.wrong(text, wrong)).ok()
    }

    pub(super) fn cors(&mut self, keys: &Spanned<file::Cors>) -> Option<Cors> {
        let help = "write origins: [https://app.example.com]";
        let origins = self.required(&keys.origins, keys.at, "origins", help)?;
        let credentials = keys.credentials.or(false);
        self.no_duplicates(&origins.items);
        let any = origins.items.iter().find(|origin| origin.value == "*");
        if any.is_some() && credentials {
            let message = "every page on the web could act with its visitor's credentials";
            self.fault(
                Code::C109,
                origins.at,
                message,
                "name the origins, or remove `credentials`",
            );
        }
        let mut named = Vec::new();
        for origin in origins.items.iter().filter(|origin| origin.value != "*") {
            match Url::parse(&origin.value).map(|url| url.origin().ascii_serialization()) {
                Ok(right) if right == origin.value => named.extend(HeaderValue::from_str(&right)),
                Ok(right) if right != "null" => {
                    self.wrong(
                        origin,
                        InvalidValue::new(
                            "is not an origin as browsers send it",
                            format!("write {right}"),
                        ),
                    );
                }
                _ => self.wrong(
                    origin,
                    InvalidValue::new("is not an origin", "write https://app.example.com"),
                ),
            }
        }
        let fields = |set: &Field<ListOrNone<Scalar<HeaderName>>>| {
            set.get()
                .map(|list| list.items.iter().map(|at| at.value.0.clone()).collect())
                .unwrap_or_default()
        };
        let allowed = keys.methods.get().map(|list| &list.value.0);
        self.whole_seconds(&keys.max_age);
        Some(Cors {
            origins: any.is_none().then_some(named),
            methods: match allowed {
                None => vec![Method::GET, Method::HEAD, Method::POST],
                some => methods(some),
            },
            headers: fields(&keys.headers),
            expose: fields(&keys.expose),
            credentials,
            max_age: self.time_or_zero(&keys.max_age, Duration::from_secs(600), MAX_DURATION),
        })
    }
}

/// Returns the methods without duplicates.
pub(super) fn methods(list: Option<&OneOrMany<Scalar<Method>>>) -> Vec<Method> {
    let mut methods: Vec<Method> = Vec::new();
    for method in list.into_iter().flat_map(|list| &list.items) {
        if !methods.contains(&method.value.0) {
            methods.push(method.value.0.clone());
        }
    }
    methods
}
