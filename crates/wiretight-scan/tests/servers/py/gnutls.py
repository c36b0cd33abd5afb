"""A GnuTLS server by ctypes, because `gnutls-serv` cannot listen on loopback only.

    gnutls.py PORT CERTIFICATE [--priority NORMAL] [--no-tickets]
"""

import argparse
import ctypes
import socket
import threading

SERVER, CERTIFICATE, PEM, CLOSE_WRITE, MEDIUM = 1, 1, 1, 1, 3
REHANDSHAKE = -37

arguments = argparse.ArgumentParser()
arguments.add_argument("port", type=int)
arguments.add_argument("certificate")
arguments.add_argument("--priority", default="NORMAL")
arguments.add_argument("--no-tickets", action="store_true")
arguments = arguments.parse_args()

gnutls = ctypes.CDLL("libgnutls.so.30")
pointer = ctypes.c_void_p
gnutls.gnutls_record_recv.restype = gnutls.gnutls_record_send.restype = ctypes.c_ssize_t
gnutls.gnutls_record_recv.argtypes = gnutls.gnutls_record_send.argtypes = [pointer, pointer, ctypes.c_size_t]


class Datum(ctypes.Structure):
    _fields_ = [("data", pointer), ("size", ctypes.c_uint)]


def must(name, *values):
    result = getattr(gnutls, name)(*values)
    assert result >= 0, f"{name}: {result}"


credentials = pointer()
must("gnutls_certificate_allocate_credentials", ctypes.byref(credentials))
files = [f"{arguments.certificate}.{kind}".encode() for kind in ("chain", "key")]
must("gnutls_certificate_set_x509_key_file", credentials, *files, PEM)
must("gnutls_certificate_set_known_dh_params", credentials, MEDIUM)
tickets = Datum()
must("gnutls_session_ticket_key_generate", ctypes.byref(tickets))


def shake(session):
    while (result := gnutls.gnutls_handshake(session)) < 0:
        if gnutls.gnutls_error_is_fatal(result):
            # Like gnutls-serv, send the reason to the client.
            gnutls.gnutls_alert_send_appropriate(session, result)
            return False
    return True


def serve(connection):
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = pointer()
    must("gnutls_init", ctypes.byref(session), SERVER)
    try:
        must("gnutls_priority_set_direct", session, arguments.priority.encode(), None)
        must("gnutls_credentials_set", session, CERTIFICATE, credentials)
        if not arguments.no_tickets:
            must("gnutls_session_ticket_enable_server", session, ctypes.byref(tickets))
        gnutls.gnutls_handshake_set_timeout(session, 60000)
        gnutls.gnutls_record_set_timeout(session, 60000)
        gnutls.gnutls_transport_set_int2(session, connection.fileno(), connection.fileno())
        if not shake(session):
            return
        buffer, asked = ctypes.create_string_buffer(16384), b""
        while b"\r\n\r\n" not in asked:
            n = gnutls.gnutls_record_recv(session, buffer, len(buffer))
            if n == REHANDSHAKE:
                if not shake(session):
                    return
            elif n > 0:
                asked += buffer.raw[:n]
            elif n == 0 or gnutls.gnutls_error_is_fatal(int(n)):
                return
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
        gnutls.gnutls_record_send(session, answer, len(answer))
        gnutls.gnutls_bye(session, CLOSE_WRITE)
    finally:
        gnutls.gnutls_deinit(session)
        connection.close()


listener = socket.create_server(("127.0.0.1", arguments.port), backlog=100)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
