//! prost's codec with one difference: a message that cannot be decoded is the caller's fault (INVALID_ARGUMENT with details),
//! where tonic's own answers a bare INTERNAL before any handler sees it.

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder};
use tonic_types::{ErrorDetails, StatusExt};

/// Encodes `T`, decodes `U`.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> TonicCodec for Codec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = <tonic_prost::ProstCodec<T, U> as TonicCodec>::Encoder;
    type Decoder = Decoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        tonic_prost::ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder(PhantomData)
    }
}

/// Decodes one message.
pub struct Decoder<U>(PhantomData<U>);

impl<U: Message + Default> TonicDecoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(source).map(Some).map_err(|why| {
            let message = format!(
                "the message cannot be decoded: {why}; it must be the request of this method, strings UTF-8, nested at most 30 deep"
            );
            let details = ErrorDetails::with_error_info("MESSAGE_NOT_DECODABLE", "canvas-scheduler", []);
            Status::with_error_details(tonic::Code::InvalidArgument, message, details)
        })
    }
}
