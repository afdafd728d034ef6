//! The messages of `proto/` against the published ones, as the crate envoy-types has them: whatever one side writes,
//! the other reads the same. The published messages are written out below field by field, without a shortcut for the
//! rest, so that a field added to them stops this file from compiling until `proto/` has it too.

use std::collections::BTreeSet;
use std::fmt::Debug;

use bytes::Bytes;
use envoy_types::pb::google::protobuf as google;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, Kind, ReflectMessage, Value};
use tonic::{Request, Response, Status};
use weir::proto as ours;
use weir::proto::envoy::service::ratelimit::v3::rate_limit_response::quota::ExpirationSpecifier;
use weir::proto::{DESCRIPTOR_SET, SERVICE_NAME};

/// The published types under the short names that ours have.
mod published {
    use envoy_types::pb::envoy as api;

    pub(super) use api::config::core::v3::HeaderValue;
    pub(super) use api::extensions::common::ratelimit::v3::RateLimitDescriptor;
    pub(super) use api::extensions::common::ratelimit::v3::rate_limit_descriptor::{
        Entry, RateLimitOverride,
    };
    pub(super) use api::service::ratelimit::v3::rate_limit_response::quota::ExpirationSpecifier;
    pub(super) use api::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
    pub(super) use api::service::ratelimit::v3::rate_limit_response::{
        Code, DescriptorStatus, Quota, RateLimit,
    };
    pub(super) use api::service::ratelimit::v3::rate_limit_service_client::RateLimitServiceClient;
    pub(super) use api::service::ratelimit::v3::rate_limit_service_server::SERVICE_NAME;
    pub(super) use api::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
    pub(super) use api::r#type::v3::RateLimitUnit;
}

proptest! {
    #[test]
    fn every_field_of_a_request_survives_the_way_through_envoy_types(request in request()) {
        survives(&request)?;
    }

    #[test]
    fn every_field_of_a_response_survives_the_way_through_envoy_types(response in response()) {
        survives(&response)?;
    }
}

/// Ours, written, reads as theirs with every field the same; theirs, written, reads as ours; and neither wrote more.
fn survives<M>(message: &M) -> Result<(), TestCaseError>
where
    M: Published + Message + Default + PartialEq + Debug,
    M::As: Message + Default + PartialEq + Debug,
{
    let wire = message.encode_to_vec();
    let theirs =
        M::As::decode(wire.as_slice()).map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
    prop_assert_eq!(&theirs, &message.published());

    let theirs_wire = theirs.encode_to_vec();
    prop_assert_eq!(theirs_wire.len(), wire.len());
    let back =
        M::decode(theirs_wire.as_slice()).map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
    prop_assert_eq!(&back, message);
    Ok(())
}

#[test]
fn nothing_that_a_full_request_says_is_unknown_here() {
    let wire = full_request().encode_to_vec();
    let read = ours::RateLimitRequest::decode(wire.as_slice()).unwrap();
    assert_eq!(read.published(), full_request());
    assert_eq!(read.encode_to_vec(), wire);
    assert_every_field_is_set_and_known(&described::<published::RateLimitRequest>(&wire));
}

#[test]
fn nothing_that_a_full_response_says_is_unknown_here() {
    let wire = full_response().encode_to_vec();
    let read = ours::RateLimitResponse::decode(wire.as_slice()).unwrap();
    assert_eq!(read.published(), full_response());
    assert_eq!(read.encode_to_vec(), wire);
    assert_every_field_is_set_and_known(&described::<published::RateLimitResponse>(&wire));
}

#[test]
fn zero_hits_differ_from_no_hits_named() {
    for (hits, wire) in [(None, &[][..]), (Some(0), &[0x1a, 0]), (Some(1), &[0x1a, 2, 8, 1])] {
        let descriptor = ours::RateLimitDescriptor { hits_addend: hits, ..Default::default() };
        assert_eq!(descriptor.encode_to_vec(), wire);
        assert_eq!(descriptor.published().encode_to_vec(), wire);
        assert_eq!(ours::RateLimitDescriptor::decode(wire).unwrap(), descriptor);
    }
}

#[test]
fn an_entry_that_is_not_utf8_is_read_here_and_refused_by_the_published_type() {
    let odd = Bytes::from_static(b"\xff\xfe");
    let entries = [
        ours::Entry { key: odd.clone(), value: Bytes::from_static(b"10.0.0.1") },
        ours::Entry { key: Bytes::from_static(b"remote_address"), value: odd },
    ];
    for entry in entries {
        let request = ours::RateLimitRequest {
            domain: "api".into(),
            descriptors: vec![ours::RateLimitDescriptor { entries: vec![entry], ..Default::default() }],
            hits_addend: 1,
        };
        let wire = request.encode_to_vec();
        assert_eq!(ours::RateLimitRequest::decode(wire.as_slice()).unwrap(), request);
        published::RateLimitRequest::decode(wire.as_slice()).unwrap_err();
    }
}

#[test]
fn an_entrys_bytes_are_a_slice_of_the_message_and_not_a_copy() {
    let wire = Bytes::from(full_request().encode_to_vec());
    let request = ours::RateLimitRequest::decode(wire.clone()).unwrap();
    let entry = &request.descriptors[0].entries[0];
    for bytes in [&entry.key, &entry.value] {
        assert!(wire.as_ptr_range().contains(&bytes.as_ptr()));
    }
}

#[test]
fn every_enum_has_the_published_values_under_the_published_names() {
    let code = numbered(|number| Some(ours::Code::try_from(number).ok()?.as_str_name()));
    assert_eq!(code, numbered(|number| Some(published::Code::try_from(number).ok()?.as_str_name())));
    assert_eq!(code, described_values("envoy.service.ratelimit.v3.RateLimitResponse.Code"));

    let unit = numbered(|number| Some(ours::Unit::try_from(number).ok()?.as_str_name()));
    assert_eq!(unit, numbered(|number| Some(published::Unit::try_from(number).ok()?.as_str_name())));
    assert_eq!(unit, described_values("envoy.service.ratelimit.v3.RateLimitResponse.RateLimit.Unit"));

    let own_unit = numbered(|number| Some(ours::RateLimitUnit::try_from(number).ok()?.as_str_name()));
    assert_eq!(
        own_unit,
        numbered(|number| Some(published::RateLimitUnit::try_from(number).ok()?.as_str_name()))
    );
    assert_eq!(own_unit, described_values("envoy.type.v3.RateLimitUnit"));

    assert_eq!(pool().all_enums().filter(|described| is_envoys(described.package_name())).count(), 3);
}

#[test]
fn every_message_and_field_has_the_published_name() {
    let named = [
        names::<published::HeaderValue>(),
        names::<published::RateLimitDescriptor>(),
        names::<published::Entry>(),
        names::<published::RateLimitOverride>(),
        names::<published::RateLimitRequest>(),
        names::<published::RateLimitResponse>(),
        names::<published::RateLimit>(),
        names::<published::Quota>(),
        names::<published::DescriptorStatus>(),
    ];
    let described = pool()
        .all_messages()
        .filter(|message| is_envoys(message.package_name()))
        .map(|message| {
            let fields = message.fields().map(|field| match field.containing_oneof() {
                Some(oneof) => oneof.name().to_owned(),
                None => field.name().to_owned(),
            });
            (message.full_name().to_owned(), fields.collect())
        })
        .collect::<BTreeSet<_>>();
    assert_eq!(described, BTreeSet::from(named));
}

#[test]
fn every_described_file_resolves_and_an_entry_is_described_as_published() {
    let pool = pool();
    let files = pool.files().map(|file| file.name().to_owned()).collect::<BTreeSet<_>>();
    for file in pool.files() {
        for import in file.dependencies() {
            assert!(files.contains(import.name()), "{} imports {}", file.name(), import.name());
        }
    }
    for wanted in ["envoy/service/ratelimit/v3/rls.proto", "google/protobuf/struct.proto"] {
        assert!(files.contains(wanted), "{wanted}");
    }

    let entry = pool.get_message_by_name(&published::Entry::full_name()).unwrap();
    for field in ["key", "value"] {
        assert_eq!(entry.get_field_by_name(field).unwrap().kind(), Kind::String);
    }
}

#[test]
fn the_service_is_described_under_the_published_name() {
    assert_eq!(SERVICE_NAME, published::SERVICE_NAME);
    let service = pool().get_service_by_name(SERVICE_NAME).unwrap();
    let [call] = service.methods().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(call.name(), "ShouldRateLimit");
    assert_eq!(call.input().full_name(), published::RateLimitRequest::full_name());
    assert_eq!(call.output().full_name(), published::RateLimitResponse::full_name());
    assert!(!call.is_client_streaming() && !call.is_server_streaming());
}

#[tokio::test]
async fn a_published_client_and_our_server_understand_each_other() {
    let server = ours::RateLimitServiceServer::new(Fixed);
    let mut client = published::RateLimitServiceClient::new(server);
    let answer = client.should_rate_limit(full_request()).await.unwrap();
    assert_eq!(answer.into_inner(), full_response());
}

/// Expects the full request, and answers with the full response.
struct Fixed;

#[tonic::async_trait]
impl ours::RateLimitService for Fixed {
    async fn should_rate_limit(
        &self,
        request: Request<ours::RateLimitRequest>,
    ) -> Result<Response<ours::RateLimitResponse>, Status> {
        if request.into_inner().published() != full_request() {
            return Err(Status::invalid_argument("not the request that was sent"));
        }
        let answer = ours::RateLimitResponse::decode(full_response().encode_to_vec().as_slice());
        answer.map(Response::new).map_err(|refusal| Status::internal(refusal.to_string()))
    }
}

// The published descriptor set, looked into.

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTOR_SET).expect("every file of the descriptor set resolves")
}

fn is_envoys(package: &str) -> bool {
    package.starts_with("envoy.")
}

/// A message read by nothing but the descriptor set.
fn described<M: Name>(wire: &[u8]) -> DynamicMessage {
    let described = pool().get_message_by_name(&M::full_name()).expect("the message is described");
    DynamicMessage::decode(described, wire).expect("the message reads as described")
}

fn assert_every_field_is_set_and_known(message: &DynamicMessage) {
    let descriptor = message.descriptor();
    let name = descriptor.full_name();
    assert_eq!(message.unknown_fields().count(), 0, "{name} has unknown fields");
    for field in descriptor.fields().filter(|_| is_envoys(descriptor.package_name())) {
        assert!(message.has_field(&field), "{name} has no {}", field.name());
        let value = message.get_field(&field);
        for inner in value.as_list().unwrap_or(&[value.as_ref().clone()]).iter().filter_map(Value::as_message)
        {
            assert_every_field_is_set_and_known(inner);
        }
    }
}

/// The name of a published message and of its fields, as its generated `Debug` prints them; a oneof counts as one.
fn names<M: Name + Default + Debug>() -> (String, BTreeSet<String>) {
    let printed = format!("{:?}", M::default());
    let (_, fields) = printed.split_once(" { ").expect("a message has fields");
    let names = fields.trim_end_matches(" }").split(", ").filter_map(|field| field.split_once(": "));
    (M::full_name(), names.map(|(name, _)| name.to_owned()).collect())
}

/// The numbers that an enum knows, among all small ones, and their names.
fn numbered(name: impl Fn(i32) -> Option<&'static str>) -> Vec<(i32, String)> {
    (-1..=64).filter_map(|number| Some((number, name(number)?.to_owned()))).collect()
}

fn described_values(name: &str) -> Vec<(i32, String)> {
    let described = pool().get_enum_by_name(name).expect("the enum is described");
    let values = described.values().map(|value| (value.number(), value.name().to_owned()));
    values.collect::<BTreeSet<_>>().into_iter().collect()
}

// Every field of the published messages, set to something that is not its default. Maps have one entry: with more,
// their order on the wire is anybody's.

fn full_request() -> published::RateLimitRequest {
    published::RateLimitRequest {
        domain: "api".into(),
        descriptors: vec![published::RateLimitDescriptor {
            entries: vec![
                published::Entry { key: "user_id".into(), value: "acme".into() },
                published::Entry { key: "path".into(), value: "/größe".into() },
            ],
            limit: Some(published::RateLimitOverride {
                requests_per_unit: u32::MAX,
                unit: published::RateLimitUnit::Year.into(),
            }),
            hits_addend: Some(google::UInt64Value { value: u64::MAX }),
            is_negative_hits: true,
        }],
        hits_addend: u32::MAX,
    }
}

fn full_response() -> published::RateLimitResponse {
    let quota = published::Quota {
        requests: 5,
        expiration_specifier: Some(published::ExpirationSpecifier::ValidUntil(google::Timestamp {
            seconds: 1_750_000_000,
            nanos: 1,
        })),
        id: "shared".into(),
    };
    let header = |key: &str| published::HeaderValue {
        key: key.into(),
        value: "text".into(),
        raw_value: b"\xff\xfe".to_vec(),
    };
    let said = google::Value { kind: Some(google::value::Kind::StringValue("login".into())) };
    published::RateLimitResponse {
        overall_code: published::Code::OverLimit.into(),
        statuses: vec![published::DescriptorStatus {
            code: published::Code::Ok.into(),
            current_limit: Some(published::RateLimit {
                name: "login".into(),
                requests_per_unit: 60,
                unit: published::Unit::Week.into(),
            }),
            limit_remaining: u32::MAX,
            duration_until_reset: Some(google::Duration { seconds: 3, nanos: 4 }),
            quota: Some(quota.clone()),
        }],
        response_headers_to_add: vec![header("retry-after")],
        request_headers_to_add: vec![header("x-limited"), header("x-rule")],
        raw_body: b"Too many attempts.\xff".to_vec(),
        dynamic_metadata: Some(google::Struct { fields: [("rule".into(), said)].into() }),
        quota: Some(quota),
    }
}

// The same message as the published type, field by field. Entries must be UTF-8 here.

trait Published {
    type As;

    fn published(&self) -> Self::As;
}

impl<M: Published> Published for Vec<M> {
    type As = Vec<M::As>;

    fn published(&self) -> Self::As {
        self.iter().map(M::published).collect()
    }
}

impl<M: Published> Published for Option<M> {
    type As = Option<M::As>;

    fn published(&self) -> Self::As {
        self.as_ref().map(M::published)
    }
}

impl Published for ours::RateLimitRequest {
    type As = published::RateLimitRequest;

    fn published(&self) -> Self::As {
        let Self { domain, descriptors, hits_addend } = self;
        Self::As { domain: domain.clone(), descriptors: descriptors.published(), hits_addend: *hits_addend }
    }
}

impl Published for ours::RateLimitDescriptor {
    type As = published::RateLimitDescriptor;

    fn published(&self) -> Self::As {
        let Self { entries, limit, hits_addend, is_negative_hits } = self;
        Self::As {
            entries: entries.published(),
            limit: limit.published(),
            hits_addend: hits_addend.map(|value| google::UInt64Value { value }),
            is_negative_hits: *is_negative_hits,
        }
    }
}

impl Published for ours::Entry {
    type As = published::Entry;

    fn published(&self) -> Self::As {
        let Self { key, value } = self;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Self::As { key: text(key), value: text(value) }
    }
}

impl Published for ours::RateLimitOverride {
    type As = published::RateLimitOverride;

    fn published(&self) -> Self::As {
        let Self { requests_per_unit, unit } = *self;
        Self::As { requests_per_unit, unit }
    }
}

impl Published for ours::RateLimitResponse {
    type As = published::RateLimitResponse;

    fn published(&self) -> Self::As {
        let Self {
            overall_code,
            statuses,
            response_headers_to_add,
            request_headers_to_add,
            raw_body,
            dynamic_metadata,
            quota,
        } = self;
        Self::As {
            overall_code: *overall_code,
            statuses: statuses.published(),
            response_headers_to_add: response_headers_to_add.published(),
            request_headers_to_add: request_headers_to_add.published(),
            raw_body: raw_body.clone(),
            dynamic_metadata: dynamic_metadata.published(),
            quota: quota.published(),
        }
    }
}

impl Published for ours::DescriptorStatus {
    type As = published::DescriptorStatus;

    fn published(&self) -> Self::As {
        let Self { code, current_limit, limit_remaining, duration_until_reset, quota } = self;
        Self::As {
            code: *code,
            current_limit: current_limit.published(),
            limit_remaining: *limit_remaining,
            duration_until_reset: duration_until_reset
                .map(|prost_types::Duration { seconds, nanos }| google::Duration { seconds, nanos }),
            quota: quota.published(),
        }
    }
}

impl Published for ours::RateLimit {
    type As = published::RateLimit;

    fn published(&self) -> Self::As {
        let Self { requests_per_unit, unit, name } = self;
        Self::As { requests_per_unit: *requests_per_unit, unit: *unit, name: name.clone() }
    }
}

impl Published for ours::Quota {
    type As = published::Quota;

    fn published(&self) -> Self::As {
        let Self { requests, expiration_specifier, id } = self;
        let expiration_specifier = expiration_specifier.map(|ExpirationSpecifier::ValidUntil(until)| {
            let prost_types::Timestamp { seconds, nanos } = until;
            published::ExpirationSpecifier::ValidUntil(google::Timestamp { seconds, nanos })
        });
        Self::As { requests: *requests, expiration_specifier, id: id.clone() }
    }
}

impl Published for ours::HeaderValue {
    type As = published::HeaderValue;

    fn published(&self) -> Self::As {
        let Self { key, value, raw_value } = self;
        Self::As { key: key.clone(), value: value.clone(), raw_value: raw_value.clone() }
    }
}

impl Published for prost_types::Struct {
    type As = google::Struct;

    fn published(&self) -> Self::As {
        let Self { fields } = self;
        Self::As { fields: fields.iter().map(|(name, value)| (name.clone(), value.published())).collect() }
    }
}

impl Published for prost_types::Value {
    type As = google::Value;

    fn published(&self) -> Self::As {
        use google::value::Kind as Theirs;
        use prost_types::value::Kind as Ours;

        let kind = self.kind.as_ref().map(|kind| match kind {
            Ours::NullValue(null) => Theirs::NullValue(*null),
            Ours::NumberValue(number) => Theirs::NumberValue(*number),
            Ours::StringValue(string) => Theirs::StringValue(string.clone()),
            Ours::BoolValue(bool) => Theirs::BoolValue(*bool),
            Ours::StructValue(fields) => Theirs::StructValue(fields.published()),
            Ours::ListValue(list) => Theirs::ListValue(google::ListValue { values: list.values.published() }),
        });
        Self::As { kind }
    }
}

// Any message, in our types.

prop_compose! {
    fn request()(
        domain in any::<String>(),
        descriptors in vec(descriptor(), 0..4),
        hits_addend in any::<u32>(),
    ) -> ours::RateLimitRequest {
        ours::RateLimitRequest { domain, descriptors, hits_addend }
    }
}

prop_compose! {
    fn descriptor()(
        entries in vec(entry(), 0..4),
        limit in option::of((any::<u32>(), enum_number())),
        hits_addend in option::of(prop_oneof![Just(0), any::<u64>()]),
        is_negative_hits in any::<bool>(),
    ) -> ours::RateLimitDescriptor {
        let limit = limit.map(|(requests_per_unit, unit)| ours::RateLimitOverride { requests_per_unit, unit });
        ours::RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits }
    }
}

prop_compose! {
    fn entry()(key in any::<String>(), value in any::<String>()) -> ours::Entry {
        ours::Entry { key: key.into(), value: value.into() }
    }
}

prop_compose! {
    fn response()(
        overall_code in enum_number(),
        statuses in vec(status(), 0..4),
        response_headers_to_add in vec(header(), 0..3),
        request_headers_to_add in vec(header(), 0..3),
        raw_body in any::<Vec<u8>>(),
        dynamic_metadata in option::of(metadata()),
        quota in option::of(quota()),
    ) -> ours::RateLimitResponse {
        ours::RateLimitResponse {
            overall_code,
            statuses,
            response_headers_to_add,
            request_headers_to_add,
            raw_body,
            dynamic_metadata,
            quota,
        }
    }
}

prop_compose! {
    fn status()(
        code in enum_number(),
        current_limit in option::of(limit()),
        limit_remaining in any::<u32>(),
        duration in option::of((any::<i64>(), any::<i32>())),
        quota in option::of(quota()),
    ) -> ours::DescriptorStatus {
        let duration_until_reset = duration.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos });
        ours::DescriptorStatus { code, current_limit, limit_remaining, duration_until_reset, quota }
    }
}

prop_compose! {
    fn limit()(requests_per_unit in any::<u32>(), unit in enum_number(), name in any::<String>()) -> ours::RateLimit {
        ours::RateLimit { requests_per_unit, unit, name }
    }
}

prop_compose! {
    fn quota()(
        requests in any::<u32>(),
        until in option::of((any::<i64>(), any::<i32>())),
        id in any::<String>(),
    ) -> ours::Quota {
        let expiration_specifier = until
            .map(|(seconds, nanos)| ExpirationSpecifier::ValidUntil(prost_types::Timestamp { seconds, nanos }));
        ours::Quota { requests, expiration_specifier, id }
    }
}

prop_compose! {
    fn header()(
        key in any::<String>(),
        value in any::<String>(),
        raw_value in any::<Vec<u8>>(),
    ) -> ours::HeaderValue {
        ours::HeaderValue { key, value, raw_value }
    }
}

fn metadata() -> impl Strategy<Value = prost_types::Struct> {
    btree_map(any::<String>(), metadata_value(), 0..4).prop_map(|fields| prost_types::Struct { fields })
}

fn metadata_value() -> impl Strategy<Value = prost_types::Value> {
    use prost_types::value::Kind;

    let leaf = prop_oneof![
        Just(None),
        Just(Some(Kind::NullValue(0))),
        proptest::num::f64::NORMAL.prop_map(|number| Some(Kind::NumberValue(number))),
        any::<String>().prop_map(|string| Some(Kind::StringValue(string))),
        any::<bool>().prop_map(|bool| Some(Kind::BoolValue(bool))),
    ];
    let leaf = leaf.prop_map(|kind| prost_types::Value { kind });
    leaf.prop_recursive(3, 12, 3, |inner| {
        let list =
            vec(inner.clone(), 0..3).prop_map(|values| Kind::ListValue(prost_types::ListValue { values }));
        let fields = btree_map(any::<String>(), inner, 0..3)
            .prop_map(|fields| Kind::StructValue(prost_types::Struct { fields }));
        prop_oneof![list, fields].prop_map(|kind| prost_types::Value { kind: Some(kind) })
    })
}

/// Known values and others: an enum's field holds any number, so that a newer peer's values pass unharmed.
fn enum_number() -> impl Strategy<Value = i32> {
    prop_oneof![0..8, any::<i32>()]
}
