//! The encoding of dispatches for the gRPC sink. Dispatches that are delivered together often have
//! the same wave, whose hundreds of zone names are most of the message: a wave is encoded once.

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use crate::domain::{DispatchMessage, Wave};
use crate::pb::v1::{TriggerCanvasRequest, TriggerCanvasResponse};
use crate::pb::values;

/// A `TriggerCanvasRequest` in two parts. The fields of a message may come in any order, so the
/// parts one after the other are the message.
pub(super) struct EncodedDispatch {
    rest: TriggerCanvasRequest,
    wave: Bytes,
}

/// The wave of the latest dispatch, encoded.
#[derive(Default)]
pub(super) struct WaveCache(Mutex<Option<(Wave, Bytes)>>);

impl WaveCache {
    pub(super) fn encode(&self, dispatch: &DispatchMessage) -> EncodedDispatch {
        EncodedDispatch {
            rest: rest(dispatch),
            wave: self.wave(&dispatch.wave),
        }
    }

    fn wave(&self, wave: &Wave) -> Bytes {
        let mut latest = self.0.lock();
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

/// Every field but the wave.
fn rest(dispatch: &DispatchMessage) -> TriggerCanvasRequest {
    let target = &dispatch.target;
    TriggerCanvasRequest {
        dispatch_id: dispatch.id.to_string(),
        workspace: dispatch.workspace.clone(),
        canvas_id: dispatch.canvas_id.as_str().to_owned(),
        schedule_id: dispatch.schedule_id.to_string(),
        revision: dispatch.revision,
        n: dispatch.number,
        wave: None,
        trigger_properties: Some(values::properties(&dispatch.properties)),
        recipients: target.recipients.iter().map(values::recipient).collect(),
        audience: target.audience.as_ref().map(values::object),
        broadcast: target.broadcast,
        lateness: Some(values::duration(dispatch.lateness)),
        attempt: dispatch.attempt,
    }
}

impl EncodedDispatch {
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

/// The codec of `TriggerCanvas` calls.
#[derive(Default)]
pub(super) struct TriggerCodec(ProstCodec<TriggerCanvasRequest, TriggerCanvasResponse>);

impl Codec for TriggerCodec {
    type Encode = EncodedDispatch;
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
    type Item = EncodedDispatch;
    type Error = Status;

    fn encode(&mut self, request: EncodedDispatch, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(request.len());
        request.write(to)
    }

    fn buffer_settings(&self) -> BufferSettings {
        // `encode` reserves what the message needs.
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
            number: n,
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
    fn the_two_parts_are_the_message_for_every_sequence_of_waves() {
        let waves = WaveCache::default();
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
