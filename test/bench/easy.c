/*
 * easy.c
 *		One request after the other by curl_easy_perform() on one kept
 *		connection: the limit of one call at a time.
 *
 * easy COUNT; the connection is made before the clock starts.
 */
#include "request.h"

int
main(int argc, char **argv)
{
	static Request request;
	int			count = argc == 2 ? atoi(argv[1]) : 0;
	double		began;
	double		cpu_began;

	if (count <= 0)
		DIE("Usage: easy COUNT");
	request_init();
	request_make(&request);
	request_next(&request);
	request_check(&request, curl_easy_perform(request.easy));

	began = seconds();
	cpu_began = cpu_seconds();
	for (int i = 0; i < count; i++)
	{
		request_next(&request);
		request_check(&request, curl_easy_perform(request.easy));
	}
	print_figures(count, began, cpu_began);
	return 0;
}
