//! Describes the service by hand, so that no compiler of protocol buffers is needed.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::Message")
            .output_type("crate::Message")
            .codec_path("tonic_prost::ProstCodec")
    };
    let service = Service::builder()
        .name("Service")
        .package("test")
        .method(method("unary", "Unary").build())
        .method(method("upload", "Upload").client_streaming().build())
        .method(method("download", "Download").server_streaming().build())
        .method(method("chat", "Chat").client_streaming().server_streaming().build())
        .method(method("fail", "Fail").build())
        .method(method("slow", "Slow").build())
        .method(method("cancelled", "Cancelled").build())
        .build();
    Builder::new().compile(&[service]);
}
