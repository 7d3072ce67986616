//! A dispatch as gRPC carries it. Many dispatches that go at once are of the same wave, whose hundreds of zone names are most of the
//! message: they are encoded once.

use std::sync::{Mutex, PoisonError};

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use crate::domain::{DispatchMessage, Wave};
use crate::pb::v1::{TriggerCanvasRequest, TriggerCanvasResponse};
use crate::pb::values;

/// A `TriggerCanvasRequest` in two parts: the fields of a message come in any order, so one part after the other is the message.
pub(super) struct Encoded {
    rest: TriggerCanvasRequest,
    wave: Bytes,
}

/// The wave of the latest dispatch, encoded.
#[derive(Default)]
pub(super) struct Waves(Mutex<Option<(Wave, Bytes)>>);

impl Waves {
    /// A dispatch in protobuf's form.
    pub(super) fn encode(&self, dispatch: &DispatchMessage) -> Encoded {
        Encoded {
            rest: rest(dispatch),
            wave: self.wave(&dispatch.wave),
        }
    }

    fn wave(&self, wave: &Wave) -> Bytes {
        // Whoever panicked with it left it whole.
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match latest.as_ref().filter(|(of, _)| of == wave) {
            Some((_, encoded)) => encoded.clone(),
            None => {
                let only_wave = TriggerCanvasRequest {
                    wave: Some(values::wave(wave)),
                    ..TriggerCanvasRequest::default()
                };
                let encoded = Bytes::from(only_wave.encode_to_vec());
                *latest = Some((wave.clone(), encoded.clone()));
                encoded
            }
        }
    }
}

/// All but the wave.
fn rest(dispatch: &DispatchMessage) -> TriggerCanvasRequest {
    let target = &dispatch.target;
    TriggerCanvasRequest {
        dispatch_id: dispatch.id.to_string(),
        workspace: dispatch.workspace.clone(),
        canvas_id: dispatch.canvas_id.as_str().to_owned(),
        schedule_id: dispatch.schedule_id.to_string(),
        revision: dispatch.revision,
        n: dispatch.n,
        wave: None,
        trigger_properties: Some(values::properties(&dispatch.properties)),
        recipients: target.recipients.iter().map(values::recipient).collect(),
        audience: target.audience.as_ref().map(values::object),
        broadcast: target.broadcast,
        lateness: Some(values::duration(dispatch.lateness)),
        attempt: dispatch.attempt,
    }
}

impl Encoded {
    fn len(&self) -> usize {
        self.rest.encoded_len() + self.wave.len()
    }

    fn write(&self, to: &mut impl BufMut) -> Result<(), Status> {
        self.rest
            .encode(to)
            .map_err(|why| Status::internal(why.to_string()))?;
        to.put_slice(&self.wave);
        Ok(())
    }
}

/// Writes such requests.
#[derive(Default)]
pub(super) struct TriggerCodec(ProstCodec<TriggerCanvasRequest, TriggerCanvasResponse>);

impl Codec for TriggerCodec {
    type Encode = Encoded;
    type Decode = TriggerCanvasResponse;
    type Encoder = Self;
    type Decoder = <ProstCodec<TriggerCanvasRequest, TriggerCanvasResponse> as Codec>::Decoder;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        self.0.decoder()
    }
}

impl Encoder for TriggerCodec {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, request: Encoded, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(request.len());
        request.write(to)
    }

    fn buffer_settings(&self) -> BufferSettings {
        // It grows once, to what the message takes.
        BufferSettings::new(1024, 32 * 1024)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::domain::{
        CanvasId, DispatchId, Properties, ScheduleId, Target, WaveMode, Zone, ZoneSet,
    };

    fn dispatch(n: u32, zones: ZoneSet) -> DispatchMessage {
        let (schedule_id, time) = (
            ScheduleId::new(),
            DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_750_000_000_123),
        );
        DispatchMessage {
            id: DispatchId::of(schedule_id, n),
            workspace: "default".to_owned(),
            canvas_id: CanvasId::parse("canvas").expect("an id"),
            schedule_id,
            revision: 7,
            n,
            wave: Wave {
                time,
                zones,
                includes_unlisted_zones: true,
                mode: WaveMode::OptimalTime,
            },
            target: Target {
                broadcast: true,
                ..Target::default()
            },
            properties: Properties(
                serde_json::json!({ "a": [1, "b"] })
                    .as_object()
                    .cloned()
                    .expect("an object"),
            ),
            lateness: TimeDelta::milliseconds(1500),
            attempt: 3,
            traceparent: None,
        }
    }

    #[test]
    fn the_two_parts_are_the_message_whatever_wave_was_before() {
        let waves = Waves::default();
        let (all, one) = (
            ZoneSet::all(),
            [Zone::utc()].into_iter().collect::<ZoneSet>(),
        );
        for (n, zones) in [(1, all), (2, all), (3, one), (4, one), (5, all)] {
            let dispatch = dispatch(n, zones);
            let (encoded, mut written) = (waves.encode(&dispatch), vec![]);
            encoded.write(&mut written).expect("written");
            assert_eq!(written.len(), encoded.len());
            let read = TriggerCanvasRequest::decode(written.as_slice()).expect("a request");
            assert_eq!(
                read,
                TriggerCanvasRequest {
                    wave: Some(values::wave(&dispatch.wave)),
                    ..rest(&dispatch)
                }
            );
            assert_eq!(read.wave.expect("a wave").zones.len(), zones.len());
        }
    }
}
