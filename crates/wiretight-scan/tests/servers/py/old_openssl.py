"""A server with OpenSSL 0.9.8e as shipped by Red Hat in 2008: SSL 2.0, export suites, RC2, compression.

Its shared libraries come in a wheel of psycopg2 from 2017 (see scripts/test); they are called by ctypes. Each
connection has a process of its own, for the library as it is called here is not for threads.

    old_openssl.py PORT CERTIFICATE CIPHERS [--export] [--ssl2|--ssl3] [--compression]
"""

import argparse
import ctypes
import glob
import os
import signal
import socket

CTRL_SET_TMP_RSA, CTRL_SET_TMP_DH, CTRL_OPTIONS = 2, 3, 32

arguments = argparse.ArgumentParser()
arguments.add_argument("port", type=int)
arguments.add_argument("certificate")
arguments.add_argument("ciphers")
arguments.add_argument("--export", action="store_true")
arguments.add_argument("--ssl2", action="store_true")
arguments.add_argument("--ssl3", action="store_true")
arguments.add_argument("--compression", action="store_true")
arguments = arguments.parse_args()

if arguments.compression:
    os.environ["OPENSSL_DEFAULT_ZLIB"] = "1"

libraries = os.environ["LD_LIBRARY_PATH"]
load = lambda name: ctypes.CDLL(glob.glob(f"{libraries}/{name}-*")[0], mode=ctypes.RTLD_GLOBAL)
crypto, ssl = load("libcrypto"), load("libssl")
pointer = ctypes.c_void_p


def call(library, name, *values):
    """A function that returns a pointer."""
    function = getattr(library, name)
    function.restype = pointer
    return pointer(function(*values))


def number(name, *values):
    result = getattr(ssl, name)(*values)
    return result


ssl.SSL_library_init()
ssl.SSL_load_error_strings()
method = "SSLv2_server_method" if arguments.ssl2 else "SSLv3_server_method" if arguments.ssl3 else "SSLv23_server_method"
context = call(ssl, "SSL_CTX_new", call(ssl, method))
key = f"{arguments.certificate}.key".encode()
if arguments.ssl2:
    # SSL 2.0 has no chains.
    assert number("SSL_CTX_use_certificate_file", context, f"{arguments.certificate}.pem".encode(), 1) == 1
else:
    assert number("SSL_CTX_use_certificate_chain_file", context, f"{arguments.certificate}.chain".encode()) == 1
assert number("SSL_CTX_use_PrivateKey_file", context, key, 1) == 1
assert number("SSL_CTX_set_cipher_list", context, arguments.ciphers.encode()) == 1
ssl.SSL_CTX_set_session_id_context(context, b"wiretight", 9)


def parameters(file):
    bio = call(crypto, "BIO_new_file", file.encode(), b"r")
    return call(crypto, "PEM_read_bio_DHparams", bio, None, None, None)


ssl.SSL_CTX_ctrl.argtypes = [pointer, ctypes.c_int, ctypes.c_long, pointer]
ssl.SSL_CTX_ctrl(context, CTRL_SET_TMP_DH, 0, parameters("dh1024.pem"))

# Export suites need an additional key of 512 bits, RSA or Diffie-Hellman, which the library requests.
callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
if arguments.export:
    crypto.RSA_generate_key.argtypes = [ctypes.c_int, ctypes.c_ulong, pointer, pointer]
    small = call(crypto, "RSA_generate_key", 512, 65537, None, None)
    dh512, dh1024 = parameters("dh512.pem"), parameters("dh1024.pem")
    give_rsa = callback(lambda _, export, bits: small.value)
    give_dh = callback(lambda _, export, bits: (dh512 if export and bits <= 512 else dh1024).value)
    ssl.SSL_CTX_set_tmp_rsa_callback(context, give_rsa)
    ssl.SSL_CTX_set_tmp_dh_callback(context, give_dh)

listener = socket.create_server(("127.0.0.1", arguments.port), backlog=100)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def serve(connection):
    connection.settimeout(None)
    signal.alarm(60)
    it = call(ssl, "SSL_new", context)
    ssl.SSL_set_fd(it, connection.fileno())
    if ssl.SSL_accept(it) != 1:
        return
    buffer = ctypes.create_string_buffer(16384)
    while (n := ssl.SSL_read(it, buffer, len(buffer))) > 0:
        # The end of a request; the library handles a renegotiation before it.
        if b"\r\n\r\n" in buffer.raw[:n]:
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
            ssl.SSL_write(it, answer, len(answer))
            ssl.SSL_shutdown(it)
            return


# The session cache is in the memory of a process, but each connection has its own process, and this library does not
# support tickets. So this server never resumes sessions.
while True:
    connection, _ = listener.accept()
    if os.fork() == 0:
        listener.close()
        serve(connection)
        os._exit(0)
    connection.close()
