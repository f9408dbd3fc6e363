//! Why TLS with an upstream failed, in the words of the log: during the handshake, or by an alert after it.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::{AlertDescription, CertificateError, Error};

use crate::base::inspected_stream::Inspector;

/// Returns the cause of a failed handshake.
pub(in crate::upstream) fn cause(error: &io::Error) -> &'static str {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
        return "the connection was closed during the TLS handshake";
    };
    match error {
        Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => "the certificate has an unknown issuer",
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "the certificate is not for this name (name mismatch)"
            }
            Bad::Expired | Bad::ExpiredContext { .. } => "the certificate has expired",
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "the certificate is not valid yet",
            _ => "the certificate is not valid",
        },
        Error::AlertReceived(Alert::ProtocolVersion) | Error::PeerIncompatible(_) => {
            "no common TLS version or cipher suite"
        }
        Error::AlertReceived(alert) => {
            refusal_of_certificate(*alert).unwrap_or("the upstream refuses the TLS handshake")
        }
        Error::InvalidMessage(_) => "the upstream does not speak TLS",
        _ => "the TLS handshake failed",
    }
}

/// Returns the cause of an alert that ended a connection after its handshake; `None` if `error` is something else.
pub(in crate::upstream) fn alert(error: &io::Error) -> Option<&'static str> {
    let Error::AlertReceived(alert) = error.get_ref()?.downcast_ref::<Error>()? else {
        return None;
    };
    Some(refusal_of_certificate(*alert).unwrap_or("the upstream ended TLS by an alert"))
}

/// Returns what an alert says about the gateway's certificate.
const fn refusal_of_certificate(alert: AlertDescription) -> Option<&'static str> {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => Some("the upstream requires a client certificate"),
        Alert::CertificateExpired => Some("the gateway's certificate has expired"),
        Alert::UnknownCA => {
            Some("the upstream does not know the issuer of the gateway's certificate")
        }
        Alert::BadCertificate
        | Alert::CertificateUnknown
        | Alert::CertificateRevoked
        | Alert::UnsupportedCertificate
        | Alert::AccessDenied => Some("the upstream refuses the gateway's certificate"),
        _ => None,
    }
}

/// Keeps the alert that ends a connection whose errors `h2` reads.
#[derive(Clone, Debug, Default)]
pub(in crate::upstream) struct ReceivedAlert(Arc<OnceLock<&'static str>>);

impl ReceivedAlert {
    /// Returns the cause of the alert, if there was one.
    pub(in crate::upstream) fn cause(&self) -> Option<&'static str> {
        self.0.get().copied()
    }

    /// Keeps the alert that `error` is, if it is one.
    pub(in crate::upstream) fn record(&self, error: &io::Error) {
        if let Some(cause) = alert(error) {
            // The first one ends the connection.
            let _ = self.0.set(cause);
        }
    }
}

impl Inspector for ReceivedAlert {
    fn read(&mut self, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn failed(&mut self, error: &io::Error) {
        self.record(error);
    }
}
