//! OTLP: a batch of records as one request, and what the answer means. The types are OpenTelemetry's own; its SDK is
//! not here, for its processors tell nobody how many records arrived.

use std::{io::Write as _, time::Duration};

use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use http_body_util::Full;
use hyper::{HeaderMap, Request, StatusCode};
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceResponse, metrics::v1::ExportMetricsServiceResponse,
    trace::v1::ExportTraceServiceResponse,
};
use prost::Message;

use super::{
    client::{self, Client, Made, TlsError},
    log,
    resource::Resource,
    settings::{Compression, Otlp, Protocol, Signal},
    span,
};

/// Where requests of one signal go, and in which form.
pub struct Exporter {
    client: Client,
    signal: Signal,
    settings: Otlp,
    resource: Resource,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Taken {
        rejected: u64,
        why: String,
    },
    /// Once more would be refused once more.
    Refused {
        why: String,
    },
    Later {
        why: String,
        after: Option<Duration>,
    },
}

/// A request as it is sent, once or more often.
#[derive(Clone)]
pub struct Encoded(Bytes);

impl Exporter {
    /// Reads certificates, so before the lock-in.
    pub fn new(
        settings: &Otlp,
        signal: Signal,
        resource: &Resource,
        made: &Made,
    ) -> Result<Self, TlsError> {
        let Otlp {
            endpoint,
            protocol,
            ca_file,
            timeout,
            ..
        } = settings;
        Ok(Exporter {
            client: Client::new(endpoint, *protocol, ca_file.as_deref(), *timeout, made)?,
            signal,
            settings: settings.clone(),
            resource: resource.clone(),
        })
    }

    pub fn encode(&self, lines: &[Bytes]) -> Encoded {
        match self.signal {
            Signal::Traces => self.pack(&span::request(lines, &self.resource)),
            _ => self.pack(&log::request(lines, &self.resource)),
        }
    }

    /// The message in the protocol's envelope.
    pub fn pack(&self, message: &impl Message) -> Encoded {
        let mut bytes = message.encode_to_vec();
        let is_packed = self.settings.compression == Compression::Gzip;
        if is_packed {
            bytes = gzip(&bytes);
        }
        if self.settings.protocol == Protocol::Grpc {
            let mut framed = Vec::with_capacity(bytes.len() + 5);
            framed.push(is_packed.into());
            framed.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            framed.extend_from_slice(&bytes);
            bytes = framed;
        }
        Encoded(bytes.into())
    }

    pub async fn send(&mut self, encoded: &Encoded) -> Answer {
        let request = match self.request(encoded) {
            Ok(request) => request,
            Err(error) => {
                let why = error.to_string();
                return Answer::Refused { why };
            }
        };
        match self.client.send(request).await {
            Err(why) => Answer::Later { why, after: None },
            Ok(answer) => match self.settings.protocol {
                Protocol::Grpc => of_grpc(&answer, self.signal),
                Protocol::Http => of_http(&answer, self.signal),
            },
        }
    }

    fn request(&self, encoded: &Encoded) -> hyper::http::Result<Request<Full<Bytes>>> {
        let Otlp {
            endpoint,
            protocol,
            headers,
            compression,
            ..
        } = &self.settings;
        let authority = endpoint.authority();
        let is_packed = *compression == Compression::Gzip;
        let mut request = match protocol {
            Protocol::Grpc => {
                let scheme = if endpoint.has_tls { "https" } else { "http" };
                let mut request =
                    Request::post(format!("{scheme}://{authority}{}", method(self.signal)))
                        .header("te", "trailers")
                        .header("content-type", "application/grpc");
                if is_packed {
                    request = request.header("grpc-encoding", "gzip");
                }
                request
            }
            Protocol::Http => {
                let path = format!("{}/v1/{}", endpoint.path, self.signal.name());
                let mut request = Request::post(path)
                    .header("host", authority)
                    .header("content-type", "application/x-protobuf");
                if is_packed {
                    request = request.header("content-encoding", "gzip");
                }
                request
            }
        };
        request = request.header(
            "user-agent",
            concat!("vortex-agent/", env!("CARGO_PKG_VERSION")),
        );
        for (name, value) in headers {
            request = request.header(name, &value.0);
        }
        request.body(Full::new(encoded.0.clone()))
    }
}

fn method(signal: Signal) -> &'static str {
    match signal {
        Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        Signal::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Level::fast());
    // Writing to memory can't fail.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// <https://opentelemetry.io/docs/specs/otlp/#otlphttp-response>
fn of_http(answer: &client::Answer, signal: Signal) -> Answer {
    let status = answer.status;
    let why = format!("HTTP status {status}");
    match status {
        StatusCode::OK => taken(&answer.body, signal),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Answer::Later {
            why,
            after: seconds(&answer.headers),
        },
        _ => Answer::Refused { why },
    }
}

/// `Retry-After`; as a date it is not asked for by anybody who would be obeyed to the second.
fn seconds(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}

/// <https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-response>
fn of_grpc(answer: &client::Answer, signal: Signal) -> Answer {
    let member = |name| {
        let value = answer.trailers.get(name).or(answer.headers.get(name));
        value.and_then(|value| value.to_str().ok())
    };
    if answer.status != StatusCode::OK {
        // Of a proxy in between: as gRPC maps it.
        let why = format!("HTTP status {}", answer.status);
        return match answer.status.as_u16() {
            429 | 502..=504 => Answer::Later { why, after: None },
            _ => Answer::Refused { why },
        };
    }
    let Some(status) = member("grpc-status").and_then(|status| status.parse::<u8>().ok()) else {
        return Answer::Later {
            why: "an answer without a gRPC status".to_owned(),
            after: None,
        };
    };
    if status == 0 {
        return match answer.body.get(..5) {
            Some([0, ..]) => taken(&answer.body[5..], signal),
            // Compressed, which nobody asked for, or nothing: it says that all is well.
            _ => taken(&[], signal),
        };
    }
    let why = format!(
        "gRPC status {status} ({})",
        member("grpc-message").unwrap_or("")
    );
    let details = member("grpc-status-details-bin").and_then(retry_info);
    // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS; and RESOURCE_EXHAUSTED from who
    // says when he will have room.
    match status {
        1 | 4 | 10 | 11 | 14 | 15 => Answer::Later {
            why,
            after: details,
        },
        8 if details.is_some() => Answer::Later {
            why,
            after: details,
        },
        _ => Answer::Refused { why },
    }
}

/// What of the batch was not wanted after all.
fn taken(body: &[u8], signal: Signal) -> Answer {
    let partial = match signal {
        Signal::Logs => ExportLogsServiceResponse::decode(body)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_log_records, partial.error_message)),
        Signal::Traces => ExportTraceServiceResponse::decode(body)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_spans, partial.error_message)),
        Signal::Metrics => ExportMetricsServiceResponse::decode(body)
            .ok()
            .and_then(|answer| answer.partial_success)
            .map(|partial| (partial.rejected_data_points, partial.error_message)),
    };
    let (rejected, why) = partial.unwrap_or_default();
    Answer::Taken {
        rejected: u64::try_from(rejected).unwrap_or(0),
        why,
    }
}

/// `google.rpc.Status`, as far as it matters here.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Delay>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// When to come back, in what goes along with a status.
fn retry_info(base64: &str) -> Option<Duration> {
    // With padding or without.
    let bytes = base64_simd::STANDARD_NO_PAD
        .decode_to_vec(base64.trim_end_matches('='))
        .ok()?;
    let status = Status::decode(&*bytes).ok()?;
    let is_it = |any: &&Any| any.type_url.ends_with("/google.rpc.RetryInfo");
    let info = RetryInfo::decode(&*status.details.iter().find(is_it)?.value).ok()?;
    let delay = info.delay.unwrap_or_default();
    let seconds = u64::try_from(delay.seconds).unwrap_or(0);
    Some(Duration::new(
        seconds,
        u32::try_from(delay.nanos).unwrap_or(0).min(999_999_999),
    ))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsPartialSuccess;

    use super::*;

    fn http(status: u16, headers: &[(&'static str, &str)]) -> Answer {
        of_http(&answer(status, headers, &[], &[]), Signal::Logs)
    }

    fn grpc(trailers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        of_grpc(&answer(200, &[], trailers, body), Signal::Logs)
    }

    fn answer(
        status: u16,
        headers: &[(&'static str, &str)],
        trailers: &[(&'static str, &str)],
        body: &[u8],
    ) -> client::Answer {
        let map = |members: &[(&'static str, &str)]| {
            let member = |(name, value): &(&'static str, &str)| {
                (
                    hyper::header::HeaderName::from_static(name),
                    value.parse().unwrap(),
                )
            };
            members.iter().map(member).collect::<HeaderMap>()
        };
        client::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: map(headers),
            trailers: map(trailers),
            body: Bytes::copy_from_slice(body),
        }
    }

    fn partial(rejected: i64) -> Vec<u8> {
        let partial_success = Some(ExportLogsPartialSuccess {
            rejected_log_records: rejected,
            error_message: "too old".to_owned(),
        });
        ExportLogsServiceResponse { partial_success }.encode_to_vec()
    }

    #[test]
    fn http_statuses_mean_what_the_specification_says() {
        for status in [429, 502, 503, 504] {
            assert!(
                matches!(http(status, &[]), Answer::Later { after: None, .. }),
                "{status}"
            );
        }
        for status in [301, 400, 401, 403, 404, 413, 500, 501] {
            assert!(
                matches!(http(status, &[]), Answer::Refused { .. }),
                "{status}"
            );
        }
        let Answer::Later { after, .. } = http(503, &[("retry-after", "7")]) else {
            panic!("not later")
        };
        assert_eq!(after, Some(Duration::from_secs(7)));
        let all = Answer::Taken {
            rejected: 0,
            why: String::new(),
        };
        assert_eq!(http(200, &[]), all);
        assert_eq!(grpc(&[("grpc-status", "0")], &[]), all);
    }

    #[test]
    fn grpc_statuses_mean_what_the_specification_says() {
        for status in 1..=16 {
            let answer = grpc(&[("grpc-status", &status.to_string())], &[]);
            let is_later = matches!(answer, Answer::Later { .. });
            assert_eq!(
                is_later,
                [1, 4, 10, 11, 14, 15].contains(&status),
                "{status}"
            );
        }
        assert!(matches!(grpc(&[], &[]), Answer::Later { .. }));
        // Status {code: 8, details: [RetryInfo {2.5 s}]}
        let info = RetryInfo {
            delay: Some(Delay {
                seconds: 2,
                nanos: 500_000_000,
            }),
        };
        let status = Status {
            details: vec![Any {
                type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
                value: info.encode_to_vec(),
            }],
        };
        let details = base64_simd::STANDARD.encode_to_string(status.encode_to_vec());
        let answer = grpc(
            &[("grpc-status", "8"), ("grpc-status-details-bin", &details)],
            &[],
        );
        let Answer::Later { after, .. } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(after, Some(Duration::from_millis(2500)));
    }

    #[test]
    fn what_is_rejected_of_a_batch_is_counted() {
        let expected = Answer::Taken {
            rejected: 3,
            why: "too old".to_owned(),
        };
        let body = partial(3);
        assert_eq!(taken(&body, Signal::Logs), expected);
        let mut framed = vec![0, 0, 0, 0, body.len() as u8];
        framed.extend(&body);
        assert_eq!(grpc(&[("grpc-status", "0")], &framed), expected);
        let Answer::Taken { rejected: 0, .. } = taken(&partial(-1), Signal::Logs) else {
            panic!("nobody rejects less than nothing")
        };
    }
}
