//! Messages inside of messages.

use cairn_proto::envoy::google::protobuf::Any;
use prost::{Message, Name};

/// It holds a message of this type.
pub fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// The message in it, if it is of this type.
///
/// # Panics
/// When its bytes do not decode.
pub fn open<M: Message + Name + Default>(any: &Any) -> Option<M> {
    is::<M>(any).then(|| M::decode(any.value.as_slice()).unwrap())
}

/// A message in an `Any`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Changes the message in it, if it is of this type.
pub fn edit<M: Message + Name + Default>(any: &mut Any, change: impl FnOnce(&mut M)) {
    if let Some(mut message) = open::<M>(any) {
        change(&mut message);
        any.value = message.encode_to_vec();
    }
}
