/* A daemon that takes its socket as systemd passes it: POST /add?id=ID appends a line to a file, and every line that is
 * acknowledged is on disk. One request a connection, one after another. On SIGTERM it answers what it has accepted, and exits. */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

static volatile sig_atomic_t stopping;

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static void say(int client, const char *body, size_t length) {
    char head[128];
    int written = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", length);
    send(client, head, (size_t)written, MSG_NOSIGNAL | MSG_MORE);
    while (length > 0) {
        ssize_t sent = send(client, body, length, MSG_NOSIGNAL);
        if (sent <= 0) return;
        body += sent;
        length -= (size_t)sent;
    }
}

static void say_file(int client, int file) {
    off_t length = lseek(file, 0, SEEK_END);
    char *all = malloc((size_t)length + 1);
    if (all && pread(file, all, (size_t)length, 0) == length) say(client, all, (size_t)length);
    free(all);
}

static void add(int client, int file, char *id) {
    id[strcspn(id, " ")] = '\n';
    size_t length = strcspn(id, "\n") + 1;
    if (write(file, id, length) == (ssize_t)length && fdatasync(file) == 0) say(client, "ok\n", 3);
}

/* Returns whether a whole request came. */
static int read_request(int client, char *request, size_t size) {
    size_t length = 0;
    while (length + 1 < size) {
        ssize_t got = read(client, request + length, size - length - 1);
        if (got <= 0) return 0;
        length += (size_t)got;
        request[length] = 0;
        if (strstr(request, "\r\n\r\n")) return 1;
    }
    return 0;
}

static void serve(int client, int file, const char *version) {
    char request[4096];
    if (read_request(client, request, sizeof request)) {
        char *id = strstr(request, "/add?id=");
        if (id) add(client, file, id + strlen("/add?id="));
        else if (strncmp(request, "GET /all ", 9) == 0) say_file(client, file);
        else say(client, version, strlen(version));
    }
    close(client);
}

int main(int argc, char **argv) {
    if (argc != 3 || sd_listen_fds(1) != 1) {
        fprintf(stderr, "usage: sd_listen VERSION FILE, with one socket\n");
        return 2;
    }
    int listener = SD_LISTEN_FDS_START;
    int file = open(argv[2], O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file < 0 || !sd_is_socket(listener, 0, SOCK_STREAM, 1)) return 3;
    /* The socket is shared with whoever passed it and whoever comes next, and so would be a change of O_NONBLOCK: poll it, and
     * take SIGTERM only while waiting, so that it is never missed between a look at the flag and the wait. */
    sigset_t term, during;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigprocmask(SIG_BLOCK, &term, &during);
    sigdelset(&during, SIGTERM);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sd_notify(0, "READY=1\nSTATUS=serves");
    while (!stopping) {
        struct pollfd poll = {.fd = listener, .events = POLLIN};
        if (ppoll(&poll, 1, NULL, &during) != 1) continue;
        int client = accept(listener, NULL, NULL);
        if (client >= 0) serve(client, file, argv[1]);
    }
    sd_notify(0, "STOPPING=1");
    return 0;
}
