/* floor ROOTFS NAME: what a container of `wright spec` costs the kernel, and nothing else.
 *
 * clone3 and six namespaces, a cgroup NAME in every hierarchy, the root and the usual mounts, devices, masked and read-only
 * paths, pivot_root, /bin/true, wait, clean up: one process, no configuration, no checks, no safety, no state. Compiled and run by
 * the benchmark, which prints how far each runtime is above it. Any failure ends it with 1 and a word on stderr.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/sched.h>
#include <mntent.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(call) do { if ((call) < 0) { perror(#call); _exit(1); } } while (0)

static char cgroups[16][512], hierarchies[16][64];
static int v1[16], count;

static void copy(const char *directory, const char *parent, const char *file) {
    char path[600], text[256];
    snprintf(path, sizeof path, "%s/%s", parent, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return; /* no cpuset */
    ssize_t length = read(fd, text, sizeof text);
    close(fd);
    snprintf(path, sizeof path, "%s/%s", directory, file);
    MUST(fd = open(path, O_WRONLY | O_CLOEXEC));
    MUST(write(fd, text, length));
    close(fd);
}

static void make_cgroups(const char *name) {
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    for (struct mntent *m; count < 16 && (m = getmntent(mounts));) {
        v1[count] = !strcmp(m->mnt_type, "cgroup");
        if (!v1[count] && strcmp(m->mnt_type, "cgroup2")) continue;
        snprintf(cgroups[count], sizeof cgroups[0], "%s/%s", m->mnt_dir, name);
        snprintf(hierarchies[count], sizeof hierarchies[0], "%s", strrchr(m->mnt_dir, '/') + 1);
        MUST(mkdir(cgroups[count], 0755));
        if (v1[count] && hasmntopt(m, "cpuset")) {
            copy(cgroups[count], m->mnt_dir, "cpuset.cpus");
            copy(cgroups[count], m->mnt_dir, "cpuset.mems");
        }
        count++;
    }
    endmntent(mounts);
}

static void node(const char *path, int minor) {
    MUST(mknod(path, S_IFCHR | 0666, makedev(1, minor)));
}

/* /sys/fs/cgroup inside: with version 1 a directory of hierarchies. */
static void mount_cgroups(void) {
    const unsigned long flags = MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY;
    if (!v1[0]) {
        MUST(mount("cgroup", "sys/fs/cgroup", "cgroup2", flags, NULL));
        return;
    }
    MUST(mount("tmpfs", "sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=755"));
    for (int i = 0; i < count; i++)
        if (v1[i]) {
            char path[128], options[128];
            snprintf(path, sizeof path, "sys/fs/cgroup/%s", hierarchies[i]);
            snprintf(options, sizeof options, strcmp(hierarchies[i], "systemd") ? "%s" : "none,name=%s", hierarchies[i]);
            MUST(mkdir(path, 0755));
            MUST(mount("cgroup", path, "cgroup", flags, options));
        }
    MUST(mount(NULL, "sys/fs/cgroup", NULL, MS_BIND | MS_REMOUNT | flags, NULL));
}

static void child(const char *root) {
    char path[600];
    for (int i = 0; i < count; i++)
        if (v1[i]) {
            snprintf(path, sizeof path, "%s/tasks", cgroups[i]);
            int fd = open(path, O_WRONLY | O_CLOEXEC);
            MUST(fd);
            MUST(write(fd, "0", 1));
            close(fd);
        }
    MUST(unshare(CLONE_NEWCGROUP));
    MUST(sethostname("floor", 5));
    MUST(mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL));
    MUST(mount(root, root, NULL, MS_BIND | MS_REC, NULL));
    MUST(chdir(root));
    MUST(mount("proc", "proc", "proc", 0, NULL));
    MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"));
    MUST(mkdir("dev/pts", 0755) | mkdir("dev/shm", 0755) | mkdir("dev/mqueue", 0755));
    MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
    MUST(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"));
    MUST(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL));
    MUST(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL));
    mount_cgroups();
    node("dev/null", 3), node("dev/zero", 5), node("dev/full", 7), node("dev/random", 8), node("dev/urandom", 9);
    MUST(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)));
    MUST(symlink("/proc/self/fd", "dev/fd") | symlink("/proc/self/fd/0", "dev/stdin") | symlink("/proc/self/fd/1", "dev/stdout"));
    MUST(symlink("/proc/self/fd/2", "dev/stderr") | symlink("pts/ptmx", "dev/ptmx"));
    MUST(syscall(SYS_pivot_root, ".", "."));
    MUST(umount2(".", MNT_DETACH));
    static const char *const files[] = {"/proc/kcore", "/proc/keys", "/proc/timer_list"};
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) mount("/dev/null", files[i], NULL, MS_BIND, NULL);
    static const char *const directories[] = {"/proc/acpi", "/proc/scsi", "/sys/firmware"};
    for (unsigned i = 0; i < sizeof directories / sizeof *directories; i++)
        mount("tmpfs", directories[i], "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1");
    static const char *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    for (unsigned i = 0; i < sizeof readonly / sizeof *readonly; i++)
        if (!mount(readonly[i], readonly[i], NULL, MS_BIND | MS_REC, NULL))
            MUST(mount(NULL, readonly[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    MUST(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL));
    execl("/bin/true", "true", (char *)NULL);
    perror("/bin/true");
    _exit(1);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    make_cgroups(argv[2]);
    struct clone_args args = {
        .flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS,
        .exit_signal = SIGCHLD,
    };
    for (int i = 0; i < count; i++)
        if (!v1[i]) {
            int fd = open(cgroups[i], O_PATH | O_CLOEXEC);
            MUST(fd);
            args.cgroup = fd;
            args.flags |= CLONE_INTO_CGROUP;
        }
    long pid = syscall(SYS_clone3, &args, sizeof args);
    MUST(pid);
    if (pid == 0) child(argv[1]);
    int status;
    MUST(waitpid(pid, &status, 0));
    for (int i = 0; i < count; i++) MUST(rmdir(cgroups[i]));
    return status ? 1 : 0;
}
