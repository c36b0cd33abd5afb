"""A QUIC server on a loopback port: PORT CERTIFICATE KEY ALPN."""

import asyncio
import sys

from aioquic.asyncio import serve
from aioquic.quic.configuration import QuicConfiguration


async def main():
    configuration = QuicConfiguration(is_client=False, alpn_protocols=[sys.argv[4]])
    configuration.load_cert_chain(sys.argv[2], sys.argv[3])
    await serve("127.0.0.1", int(sys.argv[1]), configuration=configuration)
    print("ready", flush=True)
    await asyncio.Future()


asyncio.run(main())
