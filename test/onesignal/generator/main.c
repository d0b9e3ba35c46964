/*
 * main.c
 *		The server of hostile answers: listeners, connections, and what is sent.
 *
 * A process serves one connection and then ends: simple, and nothing that a
 * broken connection leaves behind meets the next one.  No state is kept: the
 * message's id alone says what it is answered, and the same each time.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"
#include "h2.h"

/* A connection that nobody uses for so long ends by itself. */
#define IDLE_SECONDS	60

typedef struct Channel
{
	int			fd;
	SSL		   *ssl;			/* NULL: plain TCP */
	uint8_t		buffer[65536];
	size_t		begin;
	size_t		end;
} Channel;

typedef struct Request
{
	char		method[16];
	char		path[512];
	char		authorization[512];
} Request;

static int	flood_seconds = 10;

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double) time.tv_sec + (double) time.tv_nsec / 1e9;
}

/* ---- reading and writing ---- */

/* More into the buffer; false at the end. */
static bool
fill(Channel *channel)
{
	ssize_t		n;

	if (channel->begin > 0)
	{
		memmove(channel->buffer, channel->buffer + channel->begin, channel->end - channel->begin);
		channel->end -= channel->begin;
		channel->begin = 0;
	}
	if (channel->end == sizeof(channel->buffer))
		return false;
	if (channel->ssl != NULL)
		n = SSL_read(channel->ssl, channel->buffer + channel->end, (int) (sizeof(channel->buffer) - channel->end));
	else
		n = read(channel->fd, channel->buffer + channel->end, sizeof(channel->buffer) - channel->end);
	if (n <= 0)
		return false;
	channel->end += (size_t) n;
	return true;
}

/* That many bytes, valid until the next call; NULL at the end. */
static const uint8_t *
take(Channel *channel, size_t length)
{
	const uint8_t *taken;

	while (channel->end - channel->begin < length)
		if (!fill(channel))
			return NULL;
	taken = channel->buffer + channel->begin;
	channel->begin += length;
	return taken;
}

/* The peer may have gone, or not read: then this process has no more to do. */
static void
put(Channel *channel, const char *bytes, size_t length)
{
	while (length > 0)
	{
		ssize_t		n = channel->ssl != NULL ?
			SSL_write(channel->ssl, bytes, length < 1 << 20 ? (int) length : 1 << 20) : write(channel->fd, bytes, length);

		if (n <= 0)
			_exit(0);
		bytes += n;
		length -= (size_t) n;
	}
}

/* ---- how a connection ends ---- */

/* Until the peer has closed, too: otherwise what it sent would turn the end into a reset. */
static void
drain(Channel *channel, int seconds)
{
	char		bytes[4096];

	alarm((unsigned) seconds);
	while (read(channel->fd, bytes, sizeof(bytes)) > 0)
		;
}

static void
end_connection(Channel *channel, End end)
{
	struct linger at_once = {.l_onoff = 1, .l_linger = 0};

	switch (end)
	{
		case END_RST:
			setsockopt(channel->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
			break;
		case END_HANG:
			drain(channel, flood_seconds);
			break;
		case END_NOTIFY:
			if (channel->ssl != NULL)
				SSL_shutdown(channel->ssl);
			/* fall through */
		default:
			shutdown(channel->fd, SHUT_WR);
			drain(channel, 5);
	}
	close(channel->fd);
	_exit(0);
}

/* ---- sending an answer ---- */

static void
put_spread(Channel *channel, Answer *answer)
{
	const char *at = answer->bytes.data;
	size_t		left = answer->bytes.length;
	Random		random = {answer->id->seed | 1};
	size_t		first = random_below(&random, (uint32_t) left + 1);

	for (int i = 0; left > 0; i++)
	{
		size_t		length = left;

		switch (answer->at_once ? SPREAD_ONE : (Spread) answer->id->spread)
		{
			case SPREAD_TWO:
				length = i == 0 && first > 0 ? first : left;
				break;
			case SPREAD_SMALL:
				length = i < 300 ? 1 + random_below(&random, 40) : left;
				break;
			case SPREAD_PAGES:
				length = 4096;
				break;
			case SPREAD_DRIP:
				length = i < 150 ? 1 : left;
				usleep(300);
				break;
			default:
				break;
		}
		length = length < left ? length : left;
		if (answer->stray_at > (size_t) (at - answer->bytes.data))
			length = answer->stray_at - (size_t) (at - answer->bytes.data);
		put(channel, at, length);
		at += length;
		left -= length;
	}
}

/* What is written while corked leaves in one packet. */
static void
cork(Channel *channel, int on)
{
	setsockopt(channel->fd, IPPROTO_TCP, TCP_CORK, &on, sizeof(on));
}

static bool
put_record(Channel *channel, Records records, bool ask)
{
	static const char alert[] = "\x15\x03\x03\x00\x02\x02\x28";

	if (records == RECORDS_GARBAGE)
		return write(channel->fd, alert, sizeof(alert) - 1) > 0;
	if (channel->ssl == NULL || SSL_version(channel->ssl) != TLS1_3_VERSION)
		return false;
	if (records == RECORDS_KEY_UPDATES)
		SSL_key_update(channel->ssl, ask ? SSL_KEY_UPDATE_REQUESTED : SSL_KEY_UPDATE_NOT_REQUESTED);
	else
		SSL_new_session_ticket(channel->ssl);
	return SSL_do_handshake(channel->ssl) > 0;
}

/* The same again and again: some kB in one write, as fast as the peer takes it. */
static void
flood(Channel *channel, const Answer *answer)
{
	double		until = now() + flood_seconds;
	bool		ask = answer->id->seed % 2;
	Buf			many = {0};

	while (answer->unit.length > 0 && many.length < 16000)
		buf_add(&many, answer->unit.data, answer->unit.length);
	while (now() < until)
	{
		if (answer->records != RECORDS_NONE && put_record(channel, answer->records, ask))
			continue;
		if (many.length == 0)
			break;
		put(channel, many.data, many.length);
	}
	end_connection(channel, END_FIN);
}

static void
send_answer(Channel *channel, Answer *answer)
{
	alarm((unsigned) (IDLE_SECONDS + flood_seconds));
	for (int i = 0; i < answer->record_count; i++)
		put_record(channel, answer->records, i % 2);
	cork(channel, answer->stray_at > 0);
	put_spread(channel, answer);
	cork(channel, false);
	if (answer->unit.length > 0 || (answer->records != RECORDS_NONE && answer->record_count == 0))
		flood(channel, answer);
	if (answer->end != END_OWN)
		end_connection(channel, answer->end);
}

/* The id in a request's path; false: none of this protocol's. */
static bool
find_id(Id *id, const char *text, Protocol protocol)
{
	return id_parse(id, text) && (id->kind >= 128) == (protocol == H2);
}

static const char *
id_in_path(const char *path)
{
	const char *begin = strstr(path, "/notifications/");

	return begin != NULL ? begin + strlen("/notifications/") : "";
}

/* ---- HTTP/1.1 ---- */

/* A request's head; false at the end. */
static bool
read_head(Channel *channel, char *head, size_t size)
{
	size_t		length = 0;

	while (length < 4 || memcmp(head + length - 4, "\r\n\r\n", 4) != 0)
	{
		const uint8_t *byte = length + 1 < size ? take(channel, 1) : NULL;

		if (byte == NULL)
			return false;
		head[length++] = (char) *byte;
	}
	head[length] = '\0';
	return true;
}

static void
parse_head(Request *request, const char *head)
{
	const char *header = strcasestr(head, "\r\nAuthorization: ");

	memset(request, 0, sizeof(*request));
	sscanf(head, "%15s %511s", request->method, request->path);
	if (header != NULL)
		sscanf(header + strlen("\r\nAuthorization: "), "%511[^\r]", request->authorization);
}

static void
serve_h1(Channel *channel)
{
	char		head[8192];

	while (read_head(channel, head, sizeof(head)))
	{
		static const char misdirected[] = "HTTP/1.1 421 Misdirected\r\nContent-Length: 0\r\n\r\n";
		Request		request;
		Answer		answer;
		Id			id;

		parse_head(&request, head);
		if (!find_id(&id, id_in_path(request.path), H1))
		{
			put(channel, misdirected, sizeof(misdirected) - 1);
			continue;
		}
		answer_make(&answer, &id, 0, request.authorization);
		send_answer(channel, &answer);
		answer_free(&answer);
	}
}

/* CONNECT UUID.example:443 is answered as that id's message would be. */
static void
serve_proxy(Channel *channel)
{
	char		head[8192];
	Request		request;
	Answer		answer;
	Id			id;

	while (read_head(channel, head, sizeof(head)))
	{
		parse_head(&request, head);
		if (!find_id(&id, request.path, H1))
			return;
		answer_make(&answer, &id, 0, request.authorization);
		send_answer(channel, &answer);
		answer_free(&answer);
	}
}

/* ---- HTTP/2 ---- */

typedef struct Session
{
	Channel    *channel;
	Hpack		hpack;
	Request		request;
	Buf			block;			/* of the request that is being read */
	bool		ends;			/* its stream ends with it */
} Session;

static void
note_field(const char *name, const char *value, void *context)
{
	Request    *request = context;

	if (strcmp(name, ":method") == 0)
		snprintf(request->method, sizeof(request->method), "%.15s", value);
	else if (strcmp(name, ":path") == 0)
		snprintf(request->path, sizeof(request->path), "%.511s", value);
	else if (strcmp(name, "authorization") == 0)
		snprintf(request->authorization, sizeof(request->authorization), "%.511s", value);
}

static void
put_frame(Channel *channel, int type, int flags, uint32_t stream, const void *payload, size_t length)
{
	Buf			frame = {0};

	h2_frame(&frame, type, flags, stream, payload, length);
	put(channel, frame.data, frame.length);
	free(frame.data);
}

static void
answer_stream(Session *session, uint32_t stream)
{
	Answer		answer;
	Id			id;

	if (!find_id(&id, id_in_path(session->request.path), H2))
	{
		put_frame(session->channel, HEADERS, END_HEADERS | END_STREAM, stream, "\x08\x03" "421", 5);
		return;
	}
	answer_make(&answer, &id, stream, session->request.authorization);
	send_answer(session->channel, &answer);
	answer_free(&answer);
}

/* What comes before and behind the block in HEADERS is of no interest. */
static bool
add_block(Session *session, int type, int flags, const uint8_t *payload, size_t length)
{
	size_t		padding = 0;

	if (type == HEADERS && (flags & PADDED) && length > 0)
	{
		padding = *payload++;
		length--;
	}
	if (type == HEADERS && (flags & PRIORITIZED))
	{
		if (length < 5)
			return false;
		payload += 5;
		length -= 5;
	}
	if (padding > length)
		return false;
	if (type == HEADERS)
	{
		session->block.length = 0;
		session->ends = (flags & END_STREAM) != 0;
	}
	buf_add(&session->block, payload, length - padding);
	return true;
}

static bool
take_request(Session *session, int type, int flags, uint32_t stream, const uint8_t *payload, size_t length)
{
	if (!add_block(session, type, flags, payload, length))
		return false;
	if (!(flags & END_HEADERS))
		return true;
	memset(&session->request, 0, sizeof(session->request));
	if (!hpack_decode(&session->hpack, (uint8_t *) session->block.data, session->block.length, note_field, &session->request))
		return false;
	if (session->ends)
		answer_stream(session, stream);
	return true;
}

static bool
serve_frame(Session *session)
{
	const uint8_t *head = take(session->channel, 9);
	const uint8_t *payload;
	size_t		length;
	uint32_t	stream;
	int			type;
	int			flags;

	if (head == NULL)
		return false;
	length = (size_t) head[0] << 16 | (size_t) head[1] << 8 | head[2];
	type = head[3];
	flags = head[4];
	stream = (uint32_t) (head[5] & 127) << 24 | (uint32_t) head[6] << 16 | (uint32_t) head[7] << 8 | head[8];
	payload = take(session->channel, length);
	if (payload == NULL)
		return false;
	if (type == HEADERS || type == CONTINUATION)
		return take_request(session, type, flags, stream, payload, length);
	if (type == SETTINGS && !(flags & ACK))
		put_frame(session->channel, SETTINGS, ACK, 0, "", 0);
	if (type == PING && !(flags & ACK))
		put_frame(session->channel, PING, ACK, 0, payload, length);
	if (type == DATA && (flags & END_STREAM))
		answer_stream(session, stream);
	return true;
}

static void
serve_h2(Channel *channel)
{
	Session		session = {.channel = channel};

	hpack_init(&session.hpack);
	if (take(channel, 24) == NULL)	/* the preface */
		return;
	put_frame(channel, SETTINGS, 0, 0, "\0\3\0\0\0\x64", 6);	/* 100 streams */
	while (serve_frame(&session))
		;
}

/* ---- a handshake that fails, in turn in each of these ways ---- */

static void
serve_handshake(Channel *channel, int turn)
{
	static const struct
	{
		const char *bytes;
		size_t		length;
		End			end;
	}			ways[] = {
		{"", 0, END_RST}, {"", 0, END_FIN}, {"\x15\x03\x03\x00\x02\x02\x28", 7, END_FIN}, {"\x15\x03\x03\x00\x02\x01\x00", 7, END_FIN},
		{"\x16\x03\x03\x20\x00\x02\x00", 7, END_FIN}, {"\x16\x03\x03\x00\x04\x0e\x00\x00\x00", 9, END_FIN}, {"\x16\x03\x03\xff\xff\x02\xff\xff", 8, END_FIN},
		{"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}", 55, END_FIN}, {"\x17\x03\x03\x00\x05hello", 10, END_RST},
		{"\x14\x03\x03\x00\x01\x01", 6, END_FIN}, {"\x80\x2e\x01\x00\x02", 5, END_FIN}, {"\x18\x03\x03\x00\x03\x01\xff\xff", 8, END_FIN},
		{"\x16\x03\x03\x00\x00\x16\x03\x03\x00\x00", 10, END_RST}, {"\x16\x03\x03\x00\x30", 5, END_HANG}
	};
	size_t		way = (size_t) turn % lengthof(ways);

	if (turn / (int) lengthof(ways) % 2 == 0)
		fill(channel);			/* the ClientHello, or not */
	put(channel, ways[way].bytes, ways[way].length);
	end_connection(channel, ways[way].end);
}

/* ---- listeners ---- */

typedef enum Service
{
	SERVE_H2, SERVE_H1, SERVE_PLAIN, SERVE_PROXY, SERVE_HANDSHAKE, SERVICES
} Service;

static const char *const service_names[] = {"h2", "h1", "plain", "proxy", "handshake"};
static const char *const service_urls[] = {"https://localhost", "https://localhost", "http://127.0.0.1", "http://127.0.0.1", "https://localhost"};
static SSL_CTX *contexts[SERVICES];

/* The first of the client's protocols is not asked for: each listener has its own. */
static int
select_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_length,
				const unsigned char *in, unsigned int in_length, void *own)
{
	(void) ssl;

	if (SSL_select_next_proto((unsigned char **) out, out_length, own, *(unsigned char *) own + 1u, in, in_length) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_NOACK;
	return SSL_TLSEXT_ERR_OK;
}

static SSL_CTX *
make_context(const char *dir, const char *protocol)
{
	SSL_CTX    *context = SSL_CTX_new(TLS_server_method());
	char		certificate[1024];
	char		key[1024];

	snprintf(certificate, sizeof(certificate), "%s/tls/server.pem", dir);
	snprintf(key, sizeof(key), "%s/tls/server.key", dir);
	if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
		SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
	{
		fprintf(stderr, "hostile: no certificate in %s: --dir is that of a stand-in\n", dir);
		exit(1);
	}
	SSL_CTX_set_alpn_select_cb(context, select_protocol, (void *) protocol);
	SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY);
	/* Each process has a memory of its own: a ticket holds all there is to know. */
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	return context;
}

/* Below the range from which clients get their ports, as in "start". */
static int
listen_anywhere(int *port)
{
	int			fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int			on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	for (int i = 0; i < 1000; i++)
	{
		struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

		*port = 10240 + rand() % (32767 - 10240);
		address.sin_port = htons((uint16_t) *port);
		if (bind(fd, (struct sockaddr *) &address, sizeof(address)) == 0 && listen(fd, 1024) == 0)
			return fd;
	}
	perror("hostile: could not listen");
	exit(1);
}

static void
serve(Service service, int fd, int turn)
{
	static Channel channel;
	struct timeval patience = {.tv_sec = flood_seconds};
	int			on = 1;

	channel.fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	alarm(IDLE_SECONDS);
	if (contexts[service] != NULL)
	{
		channel.ssl = SSL_new(contexts[service]);
		SSL_set_fd(channel.ssl, fd);
		if (SSL_accept(channel.ssl) != 1)
			return;
	}
	switch (service)
	{
		case SERVE_H2:
			serve_h2(&channel);
			break;
		case SERVE_PROXY:
			serve_proxy(&channel);
			break;
		case SERVE_HANDSHAKE:
			serve_handshake(&channel, turn);
			break;
		default:
			serve_h1(&channel);
	}
	end_connection(&channel, END_FIN);
}

static void
accept_one(Service service, int listener)
{
	static int	turn = 0;
	int			fd = accept(listener, NULL, NULL);
	pid_t		self = getpid();

	if (fd < 0)
		return;
	turn += service == SERVE_HANDSHAKE;
	if (fork() == 0)
	{
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != self)
			_exit(0);
		signal(SIGTERM, SIG_DFL);
		signal(SIGINT, SIG_DFL);
		close(listener);
		serve(service, fd, turn);
		_exit(0);
	}
	close(fd);
}

static void
run(const char *dir)
{
	struct pollfd listeners[SERVICES];
	pid_t		parent = getppid();

	srand((unsigned) getpid());
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	contexts[SERVE_H2] = make_context(dir, "\2h2");
	contexts[SERVE_H1] = make_context(dir, "\10http/1.1");
	for (int i = 0; i < SERVICES; i++)
	{
		int			port;

		listeners[i].fd = listen_anywhere(&port);
		listeners[i].events = POLLIN;
		printf("%s %s:%d\n", service_names[i], service_urls[i], port);
	}
	printf("ready\n");
	fflush(stdout);
	while (getppid() == parent)
	{
		if (poll(listeners, SERVICES, 500) <= 0)
			continue;
		for (int i = 0; i < SERVICES; i++)
			if (listeners[i].revents & POLLIN)
				accept_one((Service) i, listeners[i].fd);
	}
}

static void
explain_input(void)
{
	char		line[128];

	while (fgets(line, sizeof(line), stdin) != NULL)
		if (!answer_explain(line))
			printf("%.*s is no id\n", (int) strcspn(line, "\n"), line);
}

static void
usage(FILE *out)
{
	fputs("hostile --dir DIR [--seconds N]      serves until its parent has gone, floods for N seconds (10);\n"
		  "                                     DIR is that of a stand-in, for its certificate\n"
		  "hostile --explain [ID...]            what an id is answered and what must come of it;\n"
		  "                                     without ids they are read from the standard input\n"
		  "hostile --key KEY --explain ...      with that API key\n"
		  "hostile --ids h1|h2 [--seed N] [--count N] [--floods] [--kind NAME]\n"
		  "                                     --count 0: one of each kind\n"
		  "hostile --list                       the kinds\n", out);
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{"dir", required_argument, NULL, 'd'}, {"seconds", required_argument, NULL, 's'}, {"explain", no_argument, NULL, 'e'},
		{"ids", required_argument, NULL, 'i'}, {"seed", required_argument, NULL, 'r'}, {"count", required_argument, NULL, 'c'},
		{"floods", no_argument, NULL, 'f'}, {"kind", required_argument, NULL, 'k'}, {"list", no_argument, NULL, 'l'},
		{"key", required_argument, NULL, 'a'}, {"help", no_argument, NULL, 'h'}, {0}
	};
	const char *dir = NULL;
	const char *protocol = NULL;
	const char *kind = NULL;
	uint64_t	seed = 1;
	int			count = 100;
	bool		floods = false;
	bool		explain = false;
	int			option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (option)
		{
			case 'd': dir = optarg; break;
			case 's': flood_seconds = atoi(optarg); break;
			case 'e': explain = true; break;
			case 'i': protocol = optarg; break;
			case 'r': seed = strtoull(optarg, NULL, 10); break;
			case 'c': count = atoi(optarg); break;
			case 'f': floods = true; break;
			case 'k': kind = optarg; break;
			case 'a': answer_explain_key(optarg); break;
			case 'l': answer_list_kinds(); return 0;
			case 'h': usage(stdout); return 0;
			default: usage(stderr); return 2;
		}
	if (explain && optind == argc)
		explain_input();
	for (int i = optind; explain && i < argc; i++)
		if (!answer_explain(argv[i]))
			return 2;
	if (protocol != NULL)
		answer_print_ids(strcmp(protocol, "h2") == 0 ? H2 : H1, seed, count, floods, kind);
	if (dir != NULL)
		run(dir);
	if (!explain && protocol == NULL && dir == NULL)
	{
		usage(stderr);
		return 2;
	}
	return 0;
}
