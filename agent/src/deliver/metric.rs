//! What the meter has, as OTLP's metrics: cumulative, so that an export that is lost loses nothing.

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    meter::{Family, Labels, Points},
    otlp::{Answer, Exporter},
    queue::Health,
    resource::{Resource, number, scope, word},
    settings::Otlp,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;

/// To one collector.
pub struct Export {
    name: String,
    exporter: Exporter,
    resource: Resource,
    interval: Duration,
}

impl Export {
    pub fn new(otlp: &Otlp, exporter: Exporter, resource: &Resource) -> Self {
        Export {
            name: format!("{}.metrics", otlp.name),
            exporter,
            resource: resource.clone(),
            interval: otlp.metrics_interval,
        }
    }

    /// For ever. What fails is not tried again: the next one says it, too.
    pub async fn run(mut self, families: impl Fn() -> Vec<Family>) {
        let mut health = Health::default();
        let start = now();
        loop {
            tokio::time::sleep(self.interval).await;
            let span = Span { start, now: now() };
            let request = request(families(), span, &self.resource);
            let encoded = self.exporter.pack(&request);
            match self.exporter.send(&encoded).await {
                Answer::Taken { .. } => health.is_well(&self.name),
                Answer::Refused { why } | Answer::Later { why, .. } => {
                    health.failed(&self.name, &why);
                }
            }
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_nanos() as u64
}

/// From when to when it was counted, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub start: u64,
    pub now: u64,
}

pub fn request(
    families: Vec<Family>,
    span: Span,
    resource: &Resource,
) -> ExportMetricsServiceRequest {
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: resource.sent(),
            scope_metrics: vec![ScopeMetrics {
                scope: scope(),
                metrics: families.into_iter().map(|one| metric(one, span)).collect(),
                ..ScopeMetrics::default()
            }],
            ..ResourceMetrics::default()
        }],
    }
}

fn metric(family: Family, span: Span) -> Metric {
    let Family {
        name,
        unit,
        help,
        points,
    } = family;
    let temporality = AggregationTemporality::Cumulative.into();
    let numbers = |points: Vec<(Labels, f64)>| {
        let point = |(labels, value): (Labels, f64)| NumberDataPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: span.start,
            time_unix_nano: span.now,
            value: Some(Value::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        points.into_iter().map(point).collect()
    };
    let data = match points {
        Points::Sums(points) => Data::Sum(Sum {
            data_points: numbers(points),
            aggregation_temporality: temporality,
            is_monotonic: true,
        }),
        Points::Gauges(points) => Data::Gauge(Gauge {
            data_points: numbers(points),
        }),
        Points::Histograms(points) => {
            let points = points.into_iter().map(|(labels, one)| HistogramDataPoint {
                attributes: attributes(&labels),
                start_time_unix_nano: span.start,
                time_unix_nano: span.now,
                count: one.count(),
                sum: Some(one.sum),
                bucket_counts: one.counts,
                explicit_bounds: one.bounds.to_vec(),
                ..HistogramDataPoint::default()
            });
            Data::Histogram(Histogram {
                data_points: points.collect(),
                aggregation_temporality: temporality,
            })
        }
    };
    Metric {
        name: name.to_owned(),
        unit: unit.into_owned(),
        description: help.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// Those that the conventions have as numbers are numbers.
fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let attribute = |(name, value): &(&'static str, String)| match *name {
        "server.port" | "http.response.status_code" => match value.parse() {
            Ok(value) => number(name, value),
            Err(_) => word(name, value),
        },
        name => word(name, value),
    };
    labels.iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::meter::{
            Meter,
            tests::{exchange, stats},
        },
        *,
    };

    #[test]
    fn buckets_and_sums_arrive() {
        let mut meter = Meter::default();
        meter.take(exchange("client", "a", "GET", "01.030000000"));
        meter.take(stats());
        let span = Span { start: 1, now: 2 };
        let metrics: Vec<Metric> = meter
            .families()
            .into_iter()
            .map(|one| metric(one, span))
            .collect();
        let find = |name| {
            metrics
                .iter()
                .find(|one| one.name == name)
                .unwrap()
                .data
                .clone()
        };
        let Some(Data::Histogram(durations)) = find("http.client.request.duration") else {
            panic!("no histogram")
        };
        let point = &durations.data_points[0];
        assert_eq!((point.count, point.sum), (1, Some(0.03)));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        let Some(Data::Sum(seen)) = find("vortex.ledger.seen") else {
            panic!("no sum")
        };
        assert!(seen.is_monotonic);
        assert_eq!(seen.data_points[0].value, Some(Value::AsDouble(10.0)));
        assert!(matches!(find("process.memory.usage"), Some(Data::Gauge(_))));
    }
}
