//! prost's codec with two differences. A message that cannot be decoded is an error of the caller (INVALID_ARGUMENT with
//! details), where tonic's codec returns INTERNAL. And a message that would need far more memory than its bytes is not decoded.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{Message, Name};
use tonic::codec::{Codec as TonicCodec, DecodeBuf, Decoder as TonicDecoder};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::messages::{self, TooMany};

/// A message of up to this many bytes needs little memory, whatever it contains.
const MAX_UNCHECKED_BYTES: usize = 16 * 1024;

/// Encodes `T`, decodes `U`.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Name + Default + Send + 'static> TonicCodec
    for Codec<T, U>
{
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

impl<U: Message + Name + Default> TonicDecoder for Decoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer is one contiguous chunk.
        if source.remaining() > MAX_UNCHECKED_BYTES
            && let Err(TooMany(max)) = messages::check(source.chunk(), &U::full_name())
        {
            let message = format!("the message contains more than {max} messages");
            return Err(refusal(
                Code::ResourceExhausted,
                "MESSAGE_TOO_LARGE",
                message,
            ));
        }
        U::decode(source).map(Some).map_err(|why| {
            let message = format!(
                "the message cannot be decoded: {why}; it must be the request of this method, strings UTF-8, nested at most 30 deep"
            );
            refusal(Code::InvalidArgument, "MESSAGE_NOT_DECODABLE", message)
        })
    }
}

fn refusal(code: Code, reason: &str, message: String) -> Status {
    Status::with_error_details(
        code,
        message,
        ErrorDetails::with_error_info(reason, "canvas-scheduler", []),
    )
}
