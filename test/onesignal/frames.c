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
 *   a        act before any request, if it is the first word
 *   b        close together with the last piece (plain only)
 *
 * and then it closes.  HTTP/2 begins with SETTINGS and acknowledges the client's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
