//! Usage events in the form of CloudEvents 1.0, and batches of them.

use jiff::Timestamp as Time;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::base::clock::Timestamp;
use crate::limit::Usage;

/// Usage of one key, under one plan, in one window.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Record {
    pub(super) limit: String,
    pub(super) key: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) plan: Option<String>,
    /// Seconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) window_end: Option<u64>,
    pub(super) units: i64,
}

impl From<Usage> for Record {
    fn from(usage: Usage) -> Self {
        Self {
            limit: usage.limit.to_string(),
            key: usage.key,
            plan: usage.plan.map(|plan| plan.to_string()),
            window_end: usage.window_end,
            units: usage.units,
        }
    }
}

impl Record {
    /// Whether both are usage of the same.
    fn is_same(&self, other: &Self) -> bool {
        (&self.limit, &self.key, &self.plan, self.window_end)
            == (&other.limit, &other.key, &other.plan, other.window_end)
    }
}

/// Adds up records of the same usage.
pub(super) fn merge(into: &mut Vec<Record>, records: Vec<Record>) {
    let known = into.len();
    for record in records {
        match into[..known].iter_mut().find(|other| other.is_same(&record)) {
            Some(other) => other.units += record.units,
            None => into.push(record),
        }
    }
}

/// Events that are exported together.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Batch {
    /// The instance and the number of the batch: unique for all time.
    pub(super) id: String,
    /// The time of collection, in seconds since the Unix epoch.
    pub(super) time: u64,
    pub(super) records: Vec<Record>,
    /// The destinations that have it.
    #[serde(default)]
    pub(super) done: Vec<String>,
}

impl Batch {
    /// Creates a batch of usage that was collected at `time`.
    pub(super) fn new(id: String, time: Timestamp, records: Vec<Record>) -> Self {
        Self { id, time: time.as_secs(), records, done: Vec::new() }
    }

    /// Returns the events. Their ids depend on the batch alone: they are the same every time.
    pub(super) fn events(&self) -> Vec<Value> {
        let each = self.records.iter().enumerate();
        each.map(|(index, record)| self.event(index, record)).collect()
    }

    fn event(&self, index: usize, record: &Record) -> Value {
        let mut data = Map::new();
        data.insert("limit".into(), json!(record.limit));
        data.insert("key".into(), json!(record.key));
        if let Some(plan) = &record.plan {
            data.insert("plan".into(), json!(plan));
        }
        if let Some(end) = record.window_end {
            data.insert("window_end".into(), json!(rfc3339(end)));
        }
        data.insert("units".into(), json!(record.units));
        let mut event = json!({
            "specversion": "1.0",
            "id": format!("{}-{index}", self.id),
            "source": "/northgate/usage",
            "type": "northgate.usage.v1",
            "time": rfc3339(self.time),
            "datacontenttype": "application/json",
            "data": data,
        });
        let mut parts = ["client", "subject"].iter();
        if let Some(subject) = parts.find_map(|part| record.key.get(*part)?.as_str()) {
            event["subject"] = subject.into();
        }
        event
    }
}

/// Formats seconds since the Unix epoch (RFC 3339).
fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Time::from_second(seconds).ok());
    time.unwrap_or(Time::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_same_ids_every_time() {
        let batch =
            Batch::new("abc-7".into(), Timestamp::from_secs(86_400), vec![record(5), record(6)]);

        let (once, again) = (batch.events(), batch.events());

        assert_eq!(once, again);
        assert_eq!(once[1]["id"], "abc-7-1");
        assert_eq!(once[0]["subject"], "app");
        assert_eq!(once[0]["time"], "1970-01-02T00:00:00Z");
        assert_eq!(once[0]["data"]["units"], 5);
        assert_eq!(once[0]["data"]["window_end"], "1970-01-02T00:00:00Z");
    }

    #[test]
    fn usage_of_the_same_is_added_up() {
        let mut all = vec![record(5)];
        let other = Record { plan: Some("gold".into()), ..record(1) };
        merge(&mut all, vec![record(-2), other.clone()]);

        assert_eq!(all, [record(3), other]);
    }

    fn record(units: i64) -> Record {
        let key = json!({ "client": "app" }).as_object().cloned().unwrap_or_default();
        Record { limit: "daily".into(), key, plan: None, window_end: Some(86_400), units }
    }
}
