/*
 * frames.c
 *		A server that sends bytes as they are written, each piece in one TLS record
 *		as long as it fits.
 *
 *   frames SCRIPT plain|h1|h2 [CERT KEY]
 *
 * Prints its port, then serves on 127.0.0.1 until its standard input ends.  The
 * n-th line of SCRIPT says what the n-th connection does, the last line what
 * all others do: once a request is there, words like
 *
 *   w:HEX    write these bytes            f:HEX    write them without end
 *   x:N:HEX  write them N times           n        wait for the next request
 *   s:MS     sleep                        h        wait for the client's end
 *   k        TLS KeyUpdates without end   t        TLS session tickets without end
 *   T        the same, full records of them, which cost their reader far more than us (TLS 1.3)
 *   a        act before any request, if it is the first word
 *   b        close together with the last piece (plain only)
 *
 * and then it closes.  HTTP/2 begins with SETTINGS and acknowledges the client's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static SSL *ssl;
static int	fd;
static const char *protocol;
static unsigned char traffic_secret[32];

static void
send_all(const unsigned char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t		sent = ssl != NULL ? SSL_write(ssl, bytes, length) : send(fd, bytes, length, MSG_NOSIGNAL);

		if (sent <= 0)
			_exit(0);
		bytes += sent;
		length -= sent;
	}
}

static void
receive(unsigned char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t		got = ssl != NULL ? SSL_read(ssl, bytes, length) : recv(fd, bytes, length, 0);

		if (got <= 0)
			_exit(0);
		bytes += got;
		length -= got;
	}
}

static void
read_request(void)
{
	static bool	begun = false;
	unsigned char head[9];
	unsigned char payload[1 << 16];

	if (strcmp(protocol, "h2") != 0)
	{
		for (unsigned last = 0; last != 0x0d0a0d0a; last = last << 8 | head[0])
			receive(head, 1);
		return;
	}
	if (!begun)
	{
		receive(payload, 24);
		send_all((const unsigned char *) "\0\0\0\4\0\0\0\0\0", 9);
		begun = true;
	}
	for (;;)
	{
		receive(head, 9);
		receive(payload, head[1] << 8 | head[2]);
		if (head[3] == 4 && !(head[4] & 1))
			send_all((const unsigned char *) "\0\0\0\4\1\0\0\0\0", 9);
		if (head[3] <= 1 && head[4] & 1)
			return;
	}
}

static int
digit(char c)
{
	return c <= '9' ? c - '0' : c - 'a' + 10;
}

static size_t
from_hex(const char *hex, unsigned char **bytes)
{
	size_t		length = strlen(hex) / 2;

	*bytes = malloc(length + 1);
	for (size_t i = 0; i < length; i++)
		(*bytes)[i] = digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]);
	return length;
}

static void
write_times(const char *hex, long times)
{
	unsigned char *bytes;
	size_t		length = from_hex(hex, &bytes);

	for (long i = 0; times < 0 || i < times; i++)
		send_all(bytes, length);
	free(bytes);
}

/* What OpenSSL says of each secret; "LABEL RANDOM SECRET". */
static void
note_secret(const SSL *unused, const char *line)
{
	unsigned char *bytes;

	(void) unused;
	if (strncmp(line, "SERVER_TRAFFIC_SECRET_0 ", 24) != 0)
		return;
	if (from_hex(strrchr(line, ' ') + 1, &bytes) == sizeof(traffic_secret))
		memcpy(traffic_secret, bytes, sizeof(traffic_secret));
	free(bytes);
}

/* RFC 8446, section 7.1: HKDF-Expand-Label with an empty context. */
static void
expand(const char *label, unsigned char *out, size_t length)
{
	unsigned char info[64];
	EVP_PKEY_CTX *hkdf = EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, NULL);
	int			info_length = snprintf((char *) info, sizeof(info), "%c%c%ctls13 %s", 'x', (int) length, (int) (6 + strlen(label)), label);

	info[0] = 0;
	info[info_length++] = 0;
	EVP_PKEY_derive_init(hkdf);
	EVP_PKEY_CTX_set_hkdf_mode(hkdf, EVP_PKEY_HKDEF_MODE_EXPAND_ONLY);
	EVP_PKEY_CTX_set_hkdf_md(hkdf, EVP_sha256());
	EVP_PKEY_CTX_set1_hkdf_key(hkdf, traffic_secret, sizeof(traffic_secret));
	EVP_PKEY_CTX_add1_hkdf_info(hkdf, info, info_length);
	EVP_PKEY_derive(hkdf, out, &length);
	EVP_PKEY_CTX_free(hkdf);
}

/* Records of TLS_AES_128_GCM_SHA256, written past OpenSSL: RFC 8446, sections 5.2, 5.3 and 4.6.1. */
static void
flood_with_tickets(void)
{
	static const unsigned char ticket[] = {4, 0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0xaa, 0xbb, 0, 0};
	unsigned char plain[16384 + 1];
	unsigned char record[5 + sizeof(plain) + 16] = {0x17, 3, 3};
	unsigned char key[16];
	unsigned char iv[12];
	EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
	int			length = 0;
	int			done;

	expand("key", key, sizeof(key));
	expand("iv", iv, sizeof(iv));
	while (length + sizeof(ticket) < sizeof(plain))
	{
		memcpy(plain + length, ticket, sizeof(ticket));
		length += sizeof(ticket);
	}
	plain[length++] = 22;
	record[3] = (length + 16) >> 8;
	record[4] = (length + 16) & 255;
	for (unsigned long number = 0;; number++)
	{
		unsigned char nonce[sizeof(iv)];
		size_t		sent = 0;

		memcpy(nonce, iv, sizeof(iv));
		for (int i = 0; i < 8; i++)
			nonce[11 - i] ^= number >> 8 * i & 255;
		EVP_EncryptInit_ex(cipher, EVP_aes_128_gcm(), NULL, key, nonce);
		EVP_EncryptUpdate(cipher, NULL, &done, record, 5);
		EVP_EncryptUpdate(cipher, record + 5, &done, plain, length);
		EVP_EncryptFinal_ex(cipher, record + 5 + length, &done);
		EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, 16, record + 5 + length);
		while (sent < (size_t) length + 21)
		{
			ssize_t		now = send(fd, record + sent, length + 21 - sent, MSG_NOSIGNAL);

			if (now <= 0)
				_exit(0);
			sent += now;
		}
	}
}

static void
wait_for_end(void)
{
	unsigned char byte;

	for (;;)
		receive(&byte, 1);
}

static void
act(char *word)
{
	int			on = 1;

	switch (word[0])
	{
		case 'w':
			write_times(word + 2, 1);
			break;
		case 'x':
			write_times(strchr(word + 2, ':') + 1, atol(word + 2));
			break;
		case 'f':
			write_times(word + 2, -1);
			break;
		case 's':
			usleep(1000 * atol(word + 2));
			break;
		case 'n':
			read_request();
			break;
		case 'h':
			wait_for_end();
			break;
		case 'b':
			setsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
			break;
		case 'k':
			while (SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1 && SSL_do_handshake(ssl) == 1)
				;
			break;
		case 't':
			while (SSL_new_session_ticket(ssl) == 1 && SSL_do_handshake(ssl) == 1)
				;
			break;
		case 'T':
			flood_with_tickets();
			break;
	}
}

static int
choose(SSL *unused, const unsigned char **out, unsigned char *length, const unsigned char *in, unsigned in_length, void *context)
{
	const char *want = strcmp(protocol, "h2") == 0 ? "\2h2" : "\10http/1.1";

	(void) unused;
	(void) context;
	return SSL_select_next_proto((unsigned char **) out, length, (const unsigned char *) want, want[0] + 1, in, in_length) ==
		OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

static void
serve(SSL_CTX *context, char *line)
{
	char	   *rest = line;
	char	   *word = strsep(&rest, " \n");
	int			on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (context != NULL)
	{
		ssl = SSL_new(context);
		SSL_set_fd(ssl, fd);
		if (SSL_accept(ssl) != 1)
			_exit(0);
	}
	if (word[0] != 'a')
		read_request();
	for (; word != NULL; word = strsep(&rest, " \n"))
		act(word);
	if (ssl != NULL)
		SSL_shutdown(ssl);
	close(fd);
	_exit(0);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t	length = sizeof(address);
	SSL_CTX    *context = NULL;
	FILE	   *script;
	char	   *lines[4096];
	size_t		size;
	int			line_count = 0;
	int			listener = socket(AF_INET, SOCK_STREAM, 0);

	if (argc < 3 || (script = fopen(argv[1], "r")) == NULL)
		return 2;
	while (line_count < 4096 && (lines[line_count] = NULL, size = 0, getline(&lines[line_count], &size, script)) > 0)
		line_count++;
	protocol = argv[2];
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	if (strcmp(protocol, "plain") != 0)
	{
		context = SSL_CTX_new(TLS_server_method());
		if (argc < 5 || SSL_CTX_use_certificate_chain_file(context, argv[3]) != 1 ||
			SSL_CTX_use_PrivateKey_file(context, argv[4], SSL_FILETYPE_PEM) != 1)
			return 2;
		SSL_CTX_set_alpn_select_cb(context, choose, NULL);
		for (int i = 0; i < line_count; i++)
			if (strchr(lines[i], 'T') != NULL)
			{
				/* No record may come before the forged ones. */
				SSL_CTX_set_num_tickets(context, 0);
				SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
				SSL_CTX_set_keylog_callback(context, note_secret);
			}
	}
	if (bind(listener, (struct sockaddr *) &address, length) != 0 || listen(listener, 128) != 0 ||
		getsockname(listener, (struct sockaddr *) &address, &length) != 0)
		return 2;
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	for (int n = 0;; n++)
	{
		struct pollfd both[] = {{listener, POLLIN, 0}, {0, POLLIN, 0}};

		poll(both, 2, -1);
		if (both[1].revents)
			kill(0, SIGKILL);	/* the group: connections, too */
		fd = accept(listener, NULL, NULL);
		if (fd >= 0 && fork() == 0)
			serve(context, lines[n < line_count ? n : line_count - 1]);
		close(fd);
	}
}
