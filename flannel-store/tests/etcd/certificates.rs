//! Certificates for tests.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::cluster::replace;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub(crate) struct Signed {
    certificate: String,
    key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// One whose own certificate serves a server at `ips` too.
    pub(crate) fn serving(name: &str, ips: &[&str]) -> (Self, Signed) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = ips.iter().map(|ip| (*ip).into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        let signed = Signed { certificate: pem.clone(), key: key.serialize_pem() };
        (Self { issuer: Issuer::new(params, key), pem }, signed)
    }

    pub(crate) fn write(&self, path: &Path) {
        replace(path, &self.pem);
    }

    /// A certificate for `name`, reached at the addresses `ips`.
    pub(crate) fn sign(&self, name: &str, ips: &[&str]) -> Signed {
        self.sign_until(name, ips, 4000)
    }

    /// The same, out of date from `year` on.
    pub(crate) fn sign_until(&self, name: &str, ips: &[&str], year: i32) -> Signed {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = ips.iter().map(|ip| (*ip).into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Signed { certificate, key: key.serialize_pem() }
    }
}

impl Signed {
    pub(crate) fn write(&self, certificate: &Path, key: &Path) {
        replace(certificate, &self.certificate);
        replace(key, &self.key);
    }
}
