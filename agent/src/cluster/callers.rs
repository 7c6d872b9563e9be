//! Whom the API server calls of its own accord: admission webhooks, aggregated APIs, conversions of custom resources.
//!
//! All say by the name of a Service who is called, so one type reads the four kinds, and leaves everything else of them
//! on the wire: definitions of custom resources are large. Of that, whom they call is kept. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, GroupVersionKind};
use serde::Deserialize;
use std::borrow::Cow;

/// Where no port is written.
const HTTPS: u16 = 443;

/// The kinds, by their plural names.
pub fn kinds() -> Vec<(&'static str, ApiResource)> {
    let admission = "admissionregistration.k8s.io";
    [
        (admission, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
        (admission, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        ("apiregistration.k8s.io", "APIService", "apiservices"),
        ("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions"),
    ]
    .map(|(group, kind, plural)| {
        (plural, ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural))
    })
    .into()
}

/// What of an object of one of the kinds matters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// The Services that it has the API server call.
    pub called: Box<[Called]>,
}

/// An object of one of the kinds.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Object {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    webhooks: Vec<Hook>,
    #[serde(default)]
    spec: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    client_config: Option<Client>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Client {
    service: Option<Called>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    service: Option<Called>,
    conversion: Option<Conversion>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Conversion {
    webhook: Option<Hook>,
}

/// A Service that is called.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Called {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    port: Option<u16>,
}

impl Called {
    /// Which of its ports.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(HTTPS)
    }
}

impl Caller {
    /// Takes what matters.
    pub fn of(object: Object) -> Self {
        let Object { metadata: _, webhooks, spec: Spec { service, conversion } } = object;
        let hooks = webhooks.into_iter().chain(conversion.and_then(|c| c.webhook));
        Self { called: hooks.filter_map(|h| h.client_config?.service).chain(service).collect() }
    }
}

impl Resource for Object {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.kind)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.group)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.version)
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.api_version)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        Cow::Borrowed(&of.plural)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::tests::yaml;

    fn called(text: &str) -> Vec<(String, String, u16)> {
        let caller = Caller::of(serde_json::from_value(yaml(text)).expect("an object"));
        caller.called.iter().map(|c| (c.namespace.clone(), c.name.clone(), c.port())).collect()
    }

    #[test]
    fn every_kind_says_by_a_service_who_is_called() {
        let is = |name: &str, port| vec![("shop".to_owned(), name.to_owned(), port)];
        let hooks = "
metadata: {name: a}
webhooks:
- {name: a.example.org, clientConfig: {service: {namespace: shop, name: hook, port: 8443, path: /x}, caBundle: eA==}}
- {name: b.example.org, clientConfig: {url: 'https://elsewhere.example.org'}}";
        assert_eq!(called(hooks), is("hook", 8443));
        let api = "{metadata: {name: v1.x}, spec: {group: x, version: v1, service: {namespace: shop, name: metrics}}}";
        assert_eq!(called(api), is("metrics", 443));
        assert_eq!(called("{metadata: {name: v1.}, spec: {version: v1, groupPriorityMinimum: 1, service: null}}"), []);
        let definition = "
metadata: {name: things.x}
spec:
  group: x
  conversion:
    strategy: Webhook
    webhook: {conversionReviewVersions: [v1], clientConfig: {service: {namespace: shop, name: turn, port: 443}}}
  versions: [{name: v1, schema: {openAPIV3Schema: {type: object}}}]";
        assert_eq!(called(definition), is("turn", 443));
        assert_eq!(called("{metadata: {name: thing}, spec: {conversion: {strategy: None}}}"), []);
    }

    #[test]
    fn requests_go_to_the_kinds_own_groups() {
        let (_, hooks) = &kinds()[0];
        let path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
        assert_eq!(Object::url_path(hooks, None), path);
    }
}
