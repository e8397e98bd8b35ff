"""Programs that try to get out of the sandbox.

Each defines ``f``, which the tests want to square a number. A program of `DEEDS` squares only if
its deed was done, so that the verdict says whether it was: the deed stands in ``deed()``, which
returns what it found, or raises. FOLDER, SECRET, PORT, PARENT stand for what the test
prepares: a folder that holds secret.txt, the text of it, a port where somebody listens, the process
that asked.
"""

from __future__ import annotations

DEEDS = {
    # Files.
    "reads a file": "return open('FOLDER/secret.txt').read() == 'SECRET'",
    "reads the users": "return 'root' in open('/etc/passwd').read()",
    "reads the environment of the parent": (
        "return 'SECRET' in open('/proc/PARENT/environ').read()"
    ),
    "reads any environment": """
        import glob
        return any('SECRET' in open(path).read() for path in glob.glob('/proc/[0-9]*/environ'))""",
    "reads the command line of the parent": "return bool(open('/proc/PARENT/cmdline').read())",
    "reads the memory of the parent": ("return os.open(f'/proc/PARENT/mem', os.O_RDONLY) >= 0"),
    "lists a folder": "return 'secret.txt' in os.listdir('FOLDER')",
    "lists the root": "return bool(os.listdir('/'))",
    "writes a file": "return open('FOLDER/written', 'w').write('x') == 1",
    "writes where it is": "return open('written', 'w').write('x') == 1",
    "writes to the folder for temporary files": """
        import tempfile
        return bool(tempfile.mkstemp())""",
    "fills the disk": """
        with open('FOLDER/big', 'wb') as file:
            return file.write(bytes(1 << 24)) > 0""",
    "makes a symbolic link": """
        os.symlink('FOLDER/secret.txt', 'FOLDER/link')
        return True""",
    "makes a hard link": """
        os.link('FOLDER/secret.txt', 'FOLDER/link')
        return True""",
    "makes a folder": """
        os.mkdir('FOLDER/new')
        return True""",
    "deletes a file": """
        os.unlink('FOLDER/secret.txt')
        return True""",
    "renames a file": """
        os.rename('FOLDER/secret.txt', 'FOLDER/mine')
        return True""",
    "makes a file executable": """
        os.chmod('FOLDER/secret.txt', 0o777)
        return True""",
    "truncates a file": """
        os.truncate('FOLDER/secret.txt', 0)
        return True""",
    "opens a file past Python": """
        libc = ctypes.CDLL(None)
        return libc.open(b'FOLDER/secret.txt', 0) >= 0""",
    "opens a file by system call": """
        libc = ctypes.CDLL(None)
        number = {'x86_64': 257, 'aarch64': 56}[os.uname().machine]
        return libc.syscall(number, -100, b'FOLDER/secret.txt', 0) >= 0""",
    "reads what was left open": """
        for place in range(3, 256):
            try:
                if stat.S_ISREG(os.fstat(place).st_mode):
                    return True
            except OSError:
                pass
        return False""",
    "reads the gold answers of a package": """
        sys.path.append('ROOT')
        from siri_train.data.problems import OURS
        return bool((OURS / 'train.jsonl').read_text())""",
    "imports a package of the machine": """
        sys.path += ['ROOT', *PATHS]
        import numpy
        return True""",
    "makes a file of memory": "return os.memfd_create('x') >= 0",
    "changes its root": """
        os.chroot('FOLDER')
        return True""",
    "mounts a file system": """
        libc = ctypes.CDLL(None)
        return libc.mount(b'none', b'FOLDER', b'tmpfs', 0, None) == 0""",
    "makes namespaces": """
        libc = ctypes.CDLL(None)
        return libc.unshare(0x10000000) == 0""",
    "sets up io_uring": """
        libc = ctypes.CDLL(None)
        return libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0""",
    # Network.
    "connects": """
        import socket
        socket.create_connection(('127.0.0.1', PORT), timeout=1).close()
        return True""",
    "sends a datagram": """
        import socket
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
            return channel.sendto(b'x', ('127.0.0.1', PORT)) == 1""",
    "listens": """
        import socket
        with socket.socket() as channel:
            channel.bind(('127.0.0.1', 0))
            channel.listen()
        return True""",
    "opens a socket past Python": "return ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    "connects to a socket in a folder": """
        import socket
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect('FOLDER/socket')
        return True""",
    # Processes.
    "forks": """
        if os.fork() == 0:
            os._exit(0)
        return True""",
    "is a fork bomb": """
        for _ in range(200):
            os.fork()
        return True""",
    "leaves a process behind": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        return True""",
    "runs a shell": "return os.system('true') == 0",
    "runs a program": """
        import subprocess
        return subprocess.run(['/bin/true']).returncode == 0""",
    "spawns a program": "return os.posix_spawn('/bin/true', ['true'], {}) > 0",
    "becomes another program": """
        os.execv('/bin/true', ['true'])""",
    "starts a thread": """
        import threading
        threading.Thread(target=print).start()
        return True""",
    "uses multiprocessing": """
        import multiprocessing
        worker = multiprocessing.Process(target=print)
        worker.start()
        return True""",
    "clones by system call": """
        libc = ctypes.CDLL(None)
        number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]
        found = libc.syscall(number, 17, 0, 0, 0, 0)
        if found == 0:
            os._exit(0)
        return found > 0""",
    # Other processes.
    "kills the parent": """
        os.kill(PARENT, 9)
        return True""",
    "kills its own parent": """
        os.kill(os.getppid(), 9)
        return True""",
    "kills all": """
        os.kill(-1, 9)
        return True""",
    "kills its group": """
        os.killpg(0, 9)
        return True""",
    "signals the neighbours": """
        done = False
        for near in range(-9, 10):
            try:
                if near:
                    os.kill(os.getpid() + near, 9)
                    done = True
            except OSError:
                pass
        return done""",
    "signals by descriptor": """
        import signal
        signal.pidfd_send_signal(os.pidfd_open(PARENT), 0)
        return True""",
    "traces the parent": "return ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) == 0",
    "reads the parent by system call": """
        buffer = ctypes.create_string_buffer(8)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        theirs = (ctypes.c_size_t * 2)(id(None), 8)
        call = ctypes.CDLL(None).process_vm_readv
        return call(os.getppid(), ours, 1, theirs, 1, 0) > 0""",
    "writes into the parent": """
        buffer = ctypes.create_string_buffer(8)
        ours = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        theirs = (ctypes.c_size_t * 2)(id(None), 8)
        call = ctypes.CDLL(None).process_vm_writev
        return call(os.getppid(), ours, 1, theirs, 1, 0) > 0""",
    "shares memory": "return ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    "lowers the priority of the parent": """
        os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)
        return True""",
    "makes a system call of x32": (
        "return ctypes.CDLL(None).syscall(0x40000000 | 2, b'FOLDER/secret.txt', 0) >= 0"
    ),
    "makes a system call of 32 bits": """
        import mmap
        if os.uname().machine != 'x86_64':
            return False
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(bytes.fromhex('b814000000cd80c3'))  # getpid
        place = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return ctypes.CFUNCTYPE(ctypes.c_int)(place)() > 0""",
    "clones by the newer system call": """
        found = ctypes.CDLL(None).syscall(435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88)
        if found == 0:
            os._exit(0)
        return found > 0""",
    "handles page faults": """
        number = {'x86_64': 323, 'aarch64': 282}[os.uname().machine]
        return ctypes.CDLL(None).syscall(number, 1) >= 0""",
    "joins a key ring": """
        number = {'x86_64': 250, 'aarch64': 219}[os.uname().machine]
        return ctypes.CDLL(None).syscall(number, 0, -3, 1) >= 0""",
    "changes its personality": "return ctypes.CDLL(None).personality(0xffffffff) >= 0",
    "lets itself be traced": "return ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0",
    "changes the limits of the parent": """
        import resource
        resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))
        return True""",
    "changes a mode past Python": "return ctypes.CDLL(None).chmod(b'FOLDER', 0) == 0",
    "stops itself": """
        import signal
        os.kill(os.getpid(), signal.SIGSTOP)
        return True""",
    "stops the neighbours": """
        import signal
        os.kill(os.getpid() + 1, signal.SIGSTOP)
        return True""",
    "doubles a descriptor": "return os.dup2(3, 9) == 9",
    "makes a pipe": "return bool(os.pipe())",
    "sends to an abstract socket": """
        import socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(chr(0) + 'siri-escape')
        return True""",
    # Limits.
    "raises its limits": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return True""",
    "takes much memory": """
        libc = ctypes.CDLL(None)
        libc.calloc.restype = ctypes.c_void_p
        return bool(libc.calloc(ctypes.c_size_t(1), ctypes.c_size_t(3 << 30)))""",
    "finds a variable of the environment": (
        "return any('SECRET' in value for value in os.environ.values())"
    ),
    # What the tests know.
    "finds the expected value in memory": """
        import gc
        wanted = ['assert f(-731) =', '= 534361']
        for each in gc.get_objects():
            if isinstance(each, dict) and 'tests' in each and 'setup' in each:
                return True
            if isinstance(each, (list, tuple)) and ''.join(wanted) in map(str, each):
                return True
        return False""",
    "finds the expected value in its memory map": """
        import re
        start = id(json) & ~0xfff
        memory = ctypes.string_at(start, 1 << 16)
        return b''.join([b'-731) =', b'= 534']) in memory""",
    "finds the tests in the frames": """
        frame = sys._getframe()
        while frame is not None:
            if 'gold' in frame.f_locals or 'tests' in frame.f_globals:
                return True
            frame = frame.f_back
        return False""",
}
"""Name and body of ``deed``."""

WITHOUT_LAYERS = (
    "reads a file",
    "reads the users",
    "lists a folder",
    "lists the root",
    "reads the command line of the parent",
    "makes a folder",
    "makes a symbolic link",
    "writes a file",
    "opens a file by system call",
    "deletes a file",
    "makes a file of memory",
    "connects",
    "sends a datagram",
    "connects to a socket in a folder",
    "forks",
    "runs a shell",
    "starts a thread",
    "takes much memory",
)
"""Deeds that are done where no layer is put on: the programs above are no empty threats."""
