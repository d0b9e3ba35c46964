/*
 * delay.c
 *		A TCP proxy on loopback that is some milliseconds away, each way.
 *
 * delay TARGET_PORT MILLISECONDS: prints the port that it listens on, and
 * serves until its standard input ends, which it does with whoever started it.
 *
 * What comes in is stamped with the time at which it may go out again, and
 * kept until then.  There is no limit to what is kept: a real path's capacity
 * is not what this models.  The connection itself is accepted at once; only
 * what is sent on it is late, so that a TLS connection takes one round trip
 * less than over a real distance.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DIE(what) (perror("delay: " what), exit(1))
#define CHUNK_SIZE 16384
#define ENDS_MAX 512

typedef struct Chunk
{
	struct Chunk *next;
	long long	due_ns;
	size_t		length;			/* 0: the end */
	size_t		sent;
	char		data[CHUNK_SIZE];
} Chunk;

/* One end of a connection: what was read from it waits for the other end. */
typedef struct End
{
	int			fd;				/* -1: not in use */
	struct End *other;
	Chunk	   *first;			/* to be written to fd */
	Chunk	   *last;
	int			blocked;		/* fd takes no more at the moment */
	int			at_end;			/* nothing more comes from fd */
} End;

static End ends[ENDS_MAX];
static int	end_count;
static Chunk *spare;
static long long delay_ns;
static int	epoll_fd;
static int	timer_fd;

static long long
now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void
watch(int fd, void *data, int how, unsigned events)
{
	struct epoll_event event = {.events = events, .data.ptr = data};

	if (epoll_ctl(epoll_fd, how, fd, &event) < 0)
		DIE("epoll_ctl");
}

static End *
new_end(int fd)
{
	End		   *end = ends;
	int			on = 1;

	while (end < ends + end_count && end->fd >= 0)
		end++;
	if (end == ends + ENDS_MAX)
		DIE("too many connections");
	if (end == ends + end_count)
		end_count++;
	memset(end, 0, sizeof(*end));
	end->fd = fd;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	return end;
}

static void
add_connection(int listener, const struct sockaddr_in *target)
{
	int			near = accept(listener, NULL, NULL);
	int			far = socket(AF_INET, SOCK_STREAM, 0);
	End		   *a;
	End		   *b;

	if (near < 0 || far < 0 || connect(far, (const struct sockaddr *) target, sizeof(*target)) < 0)
		DIE("connect");
	a = new_end(near);
	b = new_end(far);
	a->other = b;
	b->other = a;
	watch(near, a, EPOLL_CTL_ADD, EPOLLIN);
	watch(far, b, EPOLL_CTL_ADD, EPOLLIN);
}

static void
take_in(End *end)
{
	do
	{
		Chunk	   *chunk = spare != NULL ? spare : malloc(sizeof(Chunk));
		ssize_t		length;

		spare = chunk == spare ? spare->next : spare;
		length = read(end->fd, chunk->data, CHUNK_SIZE);
		if (length < 0 && (errno == EAGAIN || errno == EINTR))
		{
			chunk->next = spare;
			spare = chunk;
			return;
		}
		end->at_end = length <= 0;
		chunk->length = length > 0 ? length : 0;
		chunk->sent = 0;
		chunk->due_ns = now_ns() + delay_ns;
		chunk->next = NULL;
		if (end->other->first == NULL)
			end->other->first = chunk;
		else
			end->other->last->next = chunk;
		end->other->last = chunk;
		if (length < CHUNK_SIZE)
			break;
	} while (!end->at_end);
	if (end->at_end)
		watch(end->fd, end, EPOLL_CTL_MOD, 0);
}

static void
close_both(End *end)
{
	End		   *both[2] = {end, end->other};

	for (int i = 0; i < 2; i++)
	{
		close(both[i]->fd);
		both[i]->fd = -1;
		while (both[i]->first != NULL)
		{
			Chunk	   *chunk = both[i]->first;

			both[i]->first = chunk->next;
			free(chunk);
		}
	}
}

/* Writes what is due.  The end of one direction is taken for the end of both. */
static void
give_out(End *end, long long now)
{
	while (end->fd >= 0 && !end->blocked && end->first != NULL && end->first->due_ns <= now)
	{
		Chunk	   *chunk = end->first;
		ssize_t		length = chunk->length == 0 ? -1 :
			write(end->fd, chunk->data + chunk->sent, chunk->length - chunk->sent);

		if (length < 0 && (chunk->length == 0 || (errno != EAGAIN && errno != EINTR)))
		{
			close_both(end);
			return;
		}
		chunk->sent += length > 0 ? length : 0;
		if (chunk->sent < chunk->length)
		{
			end->blocked = 1;
			watch(end->fd, end, EPOLL_CTL_MOD, (end->at_end ? 0 : EPOLLIN) | EPOLLOUT);
			return;
		}
		end->first = chunk->next;
		chunk->next = spare;
		spare = chunk;
	}
}

/* Writes what is due to all, and sets the timer for what is due next. */
static void
give_out_all(void)
{
	long long	now = now_ns();
	long long	next = 0;
	struct itimerspec timer = {0};

	for (End *end = ends; end < ends + end_count; end++)
	{
		give_out(end, now);
		if (end->fd >= 0 && !end->blocked && end->first != NULL && (next == 0 || end->first->due_ns < next))
			next = end->first->due_ns;
	}
	timer.it_value.tv_sec = next / 1000000000;
	timer.it_value.tv_nsec = next % 1000000000;
	timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &timer, NULL);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in target = address;
	socklen_t	size = sizeof(address);
	int			listener = socket(AF_INET, SOCK_STREAM, 0);

	if (argc != 3)
		return fprintf(stderr, "Usage: delay TARGET_PORT MILLISECONDS\n"), 2;
	target.sin_port = htons(atoi(argv[1]));
	delay_ns = (long long) (atof(argv[2]) * 1e6);
	signal(SIGPIPE, SIG_IGN);
	if (bind(listener, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(listener, 128) < 0 ||
		getsockname(listener, (struct sockaddr *) &address, &size) < 0)
		DIE("listen");
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);

	epoll_fd = epoll_create1(0);
	timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
	watch(listener, &listener, EPOLL_CTL_ADD, EPOLLIN);
	watch(timer_fd, &timer_fd, EPOLL_CTL_ADD, EPOLLIN);
	watch(STDIN_FILENO, &epoll_fd, EPOLL_CTL_ADD, EPOLLIN);
	for (;;)
	{
		struct epoll_event events[64];
		int			count = epoll_wait(epoll_fd, events, 64, -1);
		unsigned long long expirations;

		for (int i = 0; i < count; i++)
		{
			End		   *end = events[i].data.ptr;

			if (events[i].data.ptr == &epoll_fd)
				return 0;
			if (events[i].data.ptr == &listener)
				add_connection(listener, &target);
			else if (events[i].data.ptr == &timer_fd)
				(void) !read(timer_fd, &expirations, sizeof(expirations));
			else if (end->fd >= 0)
			{
				if (events[i].events & EPOLLOUT)
				{
					end->blocked = 0;
					watch(end->fd, end, EPOLL_CTL_MOD, end->at_end ? 0 : EPOLLIN);
				}
				if (!end->at_end && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
					take_in(end);
			}
		}
		give_out_all();
	}
}
