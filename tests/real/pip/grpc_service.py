"""A gRPC service and its clients for tests/real, with grpcio and without generated code: messages are bytes.

    grpc_service.py serve                 prints its port and listens until standard input ends
    grpc_service.py call TARGET SCRIPT    runs a script of the clients below against TARGET, and prints what failed
"""

import concurrent.futures
import os
import sys
import threading
import time

import grpc

CANCELLED = threading.Event()


def serve():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(64), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    os._exit(0)


class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test.Service/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test.Service/Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            "/test.Service/Download": grpc.unary_stream_rpc_method_handler(self.download),
            "/test.Service/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "/test.Service/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/test.Service/Slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "/test.Service/Cancelled": grpc.unary_unary_rpc_method_handler(self.cancelled),
        }.get(details.method)

    def unary(self, request, context):
        metadata = dict(context.invocation_metadata())
        context.send_initial_metadata([("x-initial-bin", metadata.get("x-key-bin", b""))])
        context.set_trailing_metadata([("x-trailing-bin", b"\x00\xff")])
        return request

    def upload(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def download(self, request, context):
        for _ in range(int(request)):
            yield b"x" * 1000

    def chat(self, requests, context):
        for request in requests:
            yield request.upper()

    def fail(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "nicht erf\u00fcllt: 100 %")

    def slow(self, request, context):
        context.add_callback(CANCELLED.set)
        left = context.time_remaining()
        if left is None or left > 1:
            context.abort(grpc.StatusCode.INTERNAL, f"time left: {left}")
        time.sleep(3)
        return b""

    def cancelled(self, request, context):
        return b"yes" if CANCELLED.wait(3) else b"no"


def shapes(channel):
    call = channel.unary_unary("/test.Service/Unary")
    response, details = call.with_call(b"hello", metadata=[("x-key-bin", b"\x01\x02\x00")])
    expect(response, b"hello")
    expect(dict(details.initial_metadata())["x-initial-bin"], b"\x01\x02\x00")
    expect(dict(details.trailing_metadata())["x-trailing-bin"], b"\x00\xff")
    expect(channel.stream_unary("/test.Service/Upload")(iter([b"x" * 1000] * 500)), b"500000")
    received = list(channel.unary_stream("/test.Service/Download")(b"500"))
    expect((len(received), set(map(len, received))), (500, {1000}))
    # Each request is made only when the response to the one before is there.
    lock, responses = threading.Semaphore(1), []

    def requests():
        for n in range(50):
            lock.acquire()
            yield b"message %d" % n

    for response in channel.stream_stream("/test.Service/Chat")(requests()):
        responses.append(response)
        lock.release()
    expect(responses, [b"MESSAGE %d" % n for n in range(50)])


def large(channel):
    for size in [0, 1, 16384, 65536, 1 << 20, 20 << 20]:
        message = os.urandom(size)
        expect(channel.unary_unary("/test.Service/Unary")(message), message)


def errors(channel):
    expect_error(channel.unary_unary("/test.Service/Fail"), grpc.StatusCode.FAILED_PRECONDITION, "nicht erf\u00fcllt: 100 %")
    expect_error(channel.unary_unary("/test.Service/Unknown"), grpc.StatusCode.UNIMPLEMENTED)
    # Refusals of the gateway itself.
    expect_error(channel.unary_unary("/refused/None"), grpc.StatusCode.UNIMPLEMENTED, "Not found")
    expect_error(channel.unary_unary("/refused/Gone"), grpc.StatusCode.UNAVAILABLE)
    expect_error(channel.unary_unary("/refused/Token"), grpc.StatusCode.UNAUTHENTICATED)
    expect(channel.unary_unary("/refused/Limited")(b""), b"")
    expect_error(channel.unary_unary("/refused/Limited"), grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests")
    expect_error(channel.unary_unary("/refused/Small"), grpc.StatusCode.RESOURCE_EXHAUSTED, request=b"x" * 1000)


def deadlines(channel):
    began = time.monotonic()
    expect_error(channel.unary_unary("/test.Service/Slow"), grpc.StatusCode.DEADLINE_EXCEEDED, timeout=0.5)
    expect(time.monotonic() - began < 2, True)
    expect(channel.unary_unary("/test.Service/Cancelled")(b""), b"yes")
    call = channel.stream_stream("/test.Service/Chat")(iter(lambda: time.sleep(60), None))
    time.sleep(0.2)
    call.cancel()
    expect(call.code(), grpc.StatusCode.CANCELLED)
    expect(channel.unary_unary("/test.Service/Unary")(b"after"), b"after")


def many(channel):
    call = channel.unary_unary("/test.Service/Unary")
    calls = [call.future(b"%d" % n) for n in range(10000)]
    for n, future in enumerate(calls):
        expect(future.result(timeout=120), b"%d" % n)


def expect(actual, expected):
    if actual != expected:
        raise AssertionError(f"{actual!r:.200} is not {expected!r:.200}")


def expect_error(call, code, details=None, timeout=10, request=b""):
    try:
        call(request, timeout=timeout)
    except grpc.RpcError as error:
        expect(error.code(), code)
        if details is not None:
            expect(error.details(), details)
    else:
        raise AssertionError(f"the call did not fail with {code}")


def main():
    if sys.argv[1] == "serve":
        return serve()
    target, authority = sys.argv[2], os.environ.get("CA")
    options = [("grpc.max_receive_message_length", -1)]
    if authority:
        with open(authority, "rb") as file:
            channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(file.read()), options)
    else:
        channel = grpc.insecure_channel(target, options)
    for name in sys.argv[3].split(","):
        began = time.monotonic()
        globals()[name](channel)
        print(f"{name}: {time.monotonic() - began:.2f} s", flush=True)


main()
