# Prisma's update(), upsert() and updateMany() lose nothing and send nothing twice.

use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use ORM;

$ENV{NODE_PATH} = $ENV{ONESIGNAL_NODE_MODULES};
ORM::run('Prisma', 'node', "$FindBin::RealBin/prisma_app.js");
