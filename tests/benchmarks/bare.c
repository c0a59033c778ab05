/* The limit that a fan-out is compared with: one send() for each message and each connection, and nothing else.
 *
 *   bare CONNECTIONS
 *
 * Prints the port it listens on, accepts that many connections, and reads lines "messages size" from standard input: it
 * sends so many messages of so many bytes to each connection, and answers with the line "{}". TCP_NODELAY is set, as
 * asyncio does. Each connection begins with a request and an answer, as a WebSocket does: the kernel delays ACKs
 * on connections that have talked both ways, and its sends are cheaper then.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\n\r\n";

static void send_all(int connection, const char *data, size_t size) {
    while (size > 0) {
        ssize_t sent = send(connection, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("send");
        data += sent;
        size -= (size_t)sent;
    }
}

/* Reads a request up to its empty line, and answers it. */
static void shake_hands(int connection) {
    char request[4096];
    size_t length = 0;
    while (length < 4 || memcmp(request + length - 4, "\r\n\r\n", 4) != 0) {
        ssize_t got = recv(connection, request + length, sizeof request - length, 0);
        if (got <= 0)
            fail("recv");
        length += (size_t)got;
    }
    send_all(connection, ANSWER, sizeof ANSWER - 1);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    int *connections = calloc((size_t)count + 1, sizeof(int));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int i = 0; i < count; i++) {
        connections[i] = accept(listener, NULL, NULL);
        if (connections[i] < 0 || setsockopt(connections[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
            fail("accept");
        shake_hands(connections[i]);
    }
    long messages;
    size_t size;
    while (scanf("%ld %zu", &messages, &size) == 2) {
        char *message = malloc(size);
        memset(message, 'x', size);
        for (long m = 0; m < messages; m++)
            for (int i = 0; i < count; i++)
                send_all(connections[i], message, size);
        free(message);
        puts("{}");
        fflush(stdout);
    }
    return 0;
}
